-- A migration that cannot run twice, and says that it began before it does
-- anything: rows outside the transaction stay when it is cut short.
\set ON_ERROR_STOP on
\set host `cat /etc/hostname`
insert into begun (host) values (:'host');

-- It takes as long as there is a row in hold.
do $$ begin
  while exists (select from hold) loop perform pg_sleep(0.05); end loop;
end $$;

begin;
alter table account add column email text;
insert into ended (host) values (:'host');
commit;
