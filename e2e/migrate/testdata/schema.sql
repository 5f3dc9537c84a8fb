-- What is there before the migration, and where it and the workers leave a
-- mark. All times are the server's.
create table account (name text);
create table begun  (host text, at timestamptz default clock_timestamp());
create table ended  (host text, at timestamptz default clock_timestamp());
create table worker (host text, at timestamptz default clock_timestamp());
create table hold   ();
insert into hold default values;
