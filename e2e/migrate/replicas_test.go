package migrate

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"skep/internal/dockertest"
)

// within bounds every wait for containers. On an idle machine all of a story
// takes less; one that does other things as well is given its time.
const within = 2 * time.Minute

// database is a PostgreSQL server in a container, called db by those beside it.
type database struct {
	t *testing.T
	c *dockertest.Container
}

// startDatabase starts it under skep, with skep's own means: the first step
// hands PATH over, the second makes the cluster.
func startDatabase(t *testing.T, image string) database {
	t.Helper()
	c := dockertest.Run(t, dockertest.Options{
		Image: image,
		Flags: []string{
			"--network-alias=db", "--user=postgres", "--shm-size=512m",
			"--env=PGDATA=/dev/shm/data", "--env=PGHOST=/tmp", "--env=PGUSER=postgres",
			"--env=SKEP_PRESTART=" + strings.Join([]string{
				`sh -c 'echo "PATH=$(echo /usr/lib/postgresql/*/bin):$PATH" >>"$SKEP_ENV"'`,
				`initdb --no-sync --auth=trust --username=postgres`,
				`sh -c 'echo "host all all all trust" >>"$PGDATA/pg_hba.conf"'`,
			}, "\n"),
		},
		// What a client that was killed has begun goes no further, when the
		// server looks whether it is still there.
		Args: []string{"postgres", "-c", "listen_addresses=*", "-c", "unix_socket_directories=/tmp", "-c", "fsync=off",
			"-c", "client_connection_check_interval=100ms"},
	})
	c.WaitLog("database system is ready to accept connections", 1, within)
	return database{t, c}
}

// psql runs SQL in a database and returns the rows, unaligned.
func (d database) psql(name, sql string) []string {
	d.t.Helper()
	r := d.c.Exec("psql", "--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1", "--dbname="+name, "--command="+sql)
	if r.Code != 0 {
		d.t.Fatalf("cannot run %s: exit code %d: %s", sql, r.Code, r.Stderr)
	}
	return strings.Fields(r.Stdout)
}

func (d database) number(name, sql string) int {
	d.t.Helper()
	rows := d.psql(name, sql)
	if len(rows) != 1 {
		d.t.Fatalf("%s: rows %q, want one", sql, rows)
	}
	n, err := strconv.Atoi(rows[0])
	if err != nil {
		d.t.Fatal(err)
	}
	return n
}

// until asks again and again until the answer is want.
func (d database) until(name, sql string, want int) {
	d.t.Helper()
	for deadline := time.Now().Add(within); ; {
		got := d.number(name, sql)
		if got == want {
			return
		}
		if time.Now().After(deadline) {
			d.t.Fatalf("%s: %d after %v, want %d", sql, got, within, want)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// create makes a database as it was before the migration, which is held up.
func (d database) create(name string) {
	d.t.Helper()
	d.psql("postgres", "create database "+name)
	schema, err := os.ReadFile("testdata/schema.sql")
	if err != nil {
		d.t.Fatal(err)
	}
	d.psql(name, string(schema))
}

// workers is how many each replica runs.
const workers = 2

// replica starts one: it waits for the database and for the gate on the shared
// volume, migrates, and serves. "Serving" is to leave a row and to stay.
func replica(t *testing.T, image, db, volume string, flags ...string) *dockertest.Container {
	t.Helper()
	migration, err := filepath.Abs("testdata/migrate.sql")
	if err != nil {
		t.Fatal(err)
	}
	return dockertest.Run(t, dockertest.Options{
		Image: image,
		Flags: append([]string{
			"--volume=" + volume + ":/locks", "--volume=" + migration + ":/migrate.sql:ro",
			"--env=PGHOST=db", "--env=PGUSER=postgres", "--env=PGDATABASE=" + db,
			"--env=SKEP_WAIT=tcp://db:5432\nfile:///locks/gate", "--env=SKEP_WAIT_TIMEOUT=" + within.String(),
			"--env=SKEP_PRESTART=psql --no-psqlrc --quiet --file=/migrate.sql",
			"--env=SKEP_WORKERS=" + strconv.Itoa(workers),
		}, flags...),
		Args: []string{"sh", "-c", `psql -qc "insert into worker (host) values ('$(cat /etc/hostname)')" && exec sleep 600`},
	})
}

// open lets all replicas on that wait for the gate.
func open(t *testing.T, replicas []*dockertest.Container) {
	t.Helper()
	for _, c := range replicas {
		c.WaitLog(`waiting for file:///locks/gate`, 1, within)
	}
	if r := replicas[0].Exec("touch", "/locks/gate"); r.Code != 0 {
		t.Fatalf("cannot open the gate: %s", r.Stderr)
	}
}

// host is a container's name for itself.
func host(c *dockertest.Container) string { return c.ID[:12] }

func (d database) judge(name string, want map[string]int) {
	d.t.Helper()
	got := map[string]int{
		"begun":   d.number(name, "select count(*) from begun"),
		"ended":   d.number(name, "select count(*) from ended"),
		"workers": d.number(name, "select count(*) from worker"),
		"hosts":   d.number(name, "select count(distinct host) from worker"),
		"early":   d.number(name, "select count(*) from worker where at < (select min(at) from ended)"),
	}
	for what, n := range want {
		if got[what] != n {
			d.t.Errorf("%s: %d, want %d (of %v)", what, got[what], n, got)
		}
	}
	d.t.Logf("%v; the workers came %s s after the migration", got,
		d.psql(name, "select coalesce(min(worker.at) - max(ended.at), '0') || '…' || coalesce(max(worker.at) - max(ended.at), '0') from worker, ended"))
}

// replicas is how many there are of the service.
const replicas = 8

// locked are the flags by which they migrate once.
var locked = []string{"--env=SKEP_PRESTART_LOCK=/locks/shop", "--env=SKEP_PRESTART_KEY=1.4"}

// skipped is said by a replica that finds the work done.
const skipped = "the steps have been done for this key; skipping them"

// TestReplicasMigrateOnce starts eight replicas at the same time, all with the
// migration as their step, before there is a database: one migrates, the others
// wait for it, and no worker starts before it is done.
func TestReplicasMigrateOnce(t *testing.T) {
	image := imageOn(t, "skep-test/postgres:bookworm")
	volume := dockertest.Volume(t)
	var all []*dockertest.Container
	for range replicas {
		all = append(all, replica(t, image, "once", volume, locked...))
	}
	all[0].WaitLog(`waiting for tcp://db:5432`, 1, within)
	db := startDatabase(t, image)
	db.create("once")
	open(t, all)

	db.until("once", "select count(*) from begun", 1)
	first := db.psql("once", "select host from begun")[0]
	for _, c := range all {
		if host(c) != first {
			c.WaitLog(`waiting for the lock on /locks/shop, held by another replica`, 1, within)
		}
	}
	db.judge("once", map[string]int{"begun": 1, "ended": 0, "workers": 0})
	db.psql("once", "delete from hold")
	db.until("once", "select count(*) from worker", replicas*workers)

	// One that comes late, and one that starts again, find the work done.
	late := replica(t, image, "once", volume, locked...)
	late.WaitLog(skipped, 1, within)
	db.until("once", "select count(*) from worker", (replicas+1)*workers)
	all[0].Restart()
	db.until("once", "select count(*) from worker", (replicas+2)*workers)
	db.judge("once", map[string]int{"begun": 1, "ended": 1, "hosts": replicas + 1, "early": 0})
	for _, c := range all[1:] {
		if got, want := strings.Contains(c.Logs(), skipped), host(c) != first; got != want {
			t.Errorf("replica %s, first is %s: skipped the steps is %v", host(c), first, got)
		}
	}
	if files := late.Exec("ls", "/locks").Stdout; files != "gate\nshop\nshop.1.4.done\n" {
		t.Errorf("the volume has %q", files)
	}
	if took, code := late.Stop(); code != 0 || took > 10*time.Second {
		t.Errorf("docker stop took %v, exit code %d", took, code)
	}
}

// TestHolderKilled kills the replica that migrates, in the middle: exactly one
// of the others begins, and when that is done all go on.
func TestHolderKilled(t *testing.T) {
	image := imageOn(t, "skep-test/postgres:bookworm")
	db := startDatabase(t, image)
	db.create("killed")
	volume := dockertest.Volume(t)
	var all []*dockertest.Container
	for range replicas {
		all = append(all, replica(t, image, "killed", volume, locked...))
	}
	open(t, all)
	db.until("killed", "select count(*) from begun", 1)
	holder := db.psql("killed", "select host from begun")[0]
	at := slices.IndexFunc(all, func(c *dockertest.Container) bool { return host(c) == holder })
	if at < 0 {
		t.Fatalf("%s has begun, which is no replica", holder)
	}
	for i, c := range all {
		if i != at {
			c.WaitLog(`waiting for the lock`, 1, within)
		}
	}
	db.psql("killed", "create table killed as select clock_timestamp() as at")
	all[at].Kill("KILL")
	if code := all[at].Wait(within); code != 137 {
		t.Errorf("the killed container has the code %d, want 137", code)
	}
	db.until("killed", "select count(*) from begun", 2)
	db.judge("killed", map[string]int{"begun": 2, "ended": 0, "workers": 0})
	db.psql("killed", "delete from hold")
	db.until("killed", "select count(*) from worker", (replicas-1)*workers)
	db.judge("killed", map[string]int{"begun": 2, "ended": 1, "hosts": replicas - 1, "early": 0})
	if n := db.number("killed", "select count(*) from begun, killed where begun.at > killed.at and host <> '"+holder+"'"); n != 1 {
		t.Errorf("%d replicas have begun after the kill, want 1", n)
	}
	t.Logf("the next began %s s after the kill", db.psql("killed", "select max(begun.at) - min(killed.at) from begun, killed"))
}

// TestReplicasWithoutALock sees what the stories above would not miss: without
// the lock every replica migrates, and all but one fail.
func TestReplicasWithoutALock(t *testing.T) {
	image := imageOn(t, "skep-test/postgres:bookworm")
	db := startDatabase(t, image)
	db.create("unlocked")
	volume := dockertest.Volume(t)
	var all []*dockertest.Container
	for range 3 {
		all = append(all, replica(t, image, "unlocked", volume))
	}
	open(t, all)
	db.until("unlocked", "select count(*) from begun", len(all))
	db.psql("unlocked", "delete from hold")
	db.until("unlocked", "select count(*) from worker", workers)
	failed := 0
	for _, c := range all {
		if host(c) != db.psql("unlocked", "select host from ended")[0] && c.Wait(within) == 3 { // psql(1): an error in a script
			failed++
		}
	}
	if failed != len(all)-1 {
		t.Errorf("%d replicas have failed, want %d", failed, len(all)-1)
	}
}
