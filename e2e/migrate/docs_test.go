package migrate

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"skep/internal/dockertest"
	"skep/internal/testneed"
)

// snippet is one block of code in the document.
type snippet struct {
	language string
	text     string
	used     bool // by a test
}

// document is docs/prestart.md.
type document struct {
	text     string
	snippets []*snippet
}

var fence = regexp.MustCompile("(?ms)^( *)```(\\w*)\n(.*?)^ *```$")

func readDocument(t *testing.T) document {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "docs", "prestart.md"))
	if err != nil {
		t.Fatal(err)
	}
	d := document{text: string(text)}
	for _, m := range fence.FindAllStringSubmatch(d.text, -1) {
		lines := strings.Split(m[3], "\n")
		for i := range lines {
			lines[i] = strings.TrimPrefix(lines[i], m[1])
		}
		d.snippets = append(d.snippets, &snippet{language: m[2], text: strings.Join(lines, "\n")})
	}
	return d
}

// find returns the one snippet of a language that has the text.
func (d document) find(t *testing.T, language, text string) string {
	t.Helper()
	var found *snippet
	for _, s := range d.snippets {
		if s.language == language && strings.Contains(s.text, text) {
			if found != nil {
				t.Fatalf("two snippets in %s have %q", language, text)
			}
			found = s
		}
	}
	if found == nil {
		t.Fatalf("no snippet in %s has %q", language, text)
	}
	found.used = true
	return found.text
}

// yaml reads a snippet as those who will use it do, into v.
func yaml(t *testing.T, text string, v any) {
	t.Helper()
	const python = "/usr/bin/python3" // Debian's, which has Debian's modules
	testneed.Program(t, python)
	if err := exec.Command(python, "-c", "import yaml").Run(); err != nil {
		testneed.Skip(t, "needs python3-yaml (make deps installs it)")
	}
	cmd := exec.Command(python, "-c", "import json, sys, yaml; json.dump(yaml.safe_load(sys.stdin), sys.stdout)")
	cmd.Stdin = strings.NewReader(text)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("no YAML: %v\n%s\n%s", err, stderr.String(), text)
	}
	decode := json.NewDecoder(strings.NewReader(string(out)))
	decode.DisallowUnknownFields()
	if err := decode.Decode(v); err != nil {
		t.Fatalf("cannot read %s: %v", out, err)
	}
}

// sandbox is a folder with made-up programs, each of which appends its name and
// arguments to the file ran.
type sandbox struct {
	t   *testing.T
	dir string
}

func newSandbox(t *testing.T, programs ...string) sandbox {
	t.Helper()
	s := sandbox{t, t.TempDir()}
	for _, name := range programs {
		s.program(name, "")
	}
	return s
}

func (s sandbox) program(name, then string) {
	s.t.Helper()
	text := "#!/bin/sh\necho " + name + " \"$@\" >>" + s.dir + "/ran\n" + then
	if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o700); err != nil {
		s.t.Fatal(err)
	}
}

// run runs skep there and returns its exit code and what it printed.
func (s sandbox) run(environment map[string]string, args ...string) (int, string) {
	s.t.Helper()
	cmd := exec.Command(skep, args...)
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), "PATH="+s.dir+":"+os.Getenv("PATH"))
	for name, value := range environment {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		s.t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), string(out)
}

// ran returns what ran since the last call.
func (s sandbox) ran() string {
	s.t.Helper()
	text, err := os.ReadFile(filepath.Join(s.dir, "ran"))
	if err != nil && !os.IsNotExist(err) {
		s.t.Fatal(err)
	}
	_ = os.Remove(filepath.Join(s.dir, "ran")) // perhaps it is not there
	return string(text)
}

// service is what the document uses of a Compose service.
type service struct {
	Image       string
	Entrypoint  []string
	Environment map[string]string
	Volumes     []string
	Deploy      struct{ Replicas int }
	DependsOn   map[string]struct{ Condition string } `json:"depends_on"`
}

// container is what it uses of a container in Kubernetes.
type container struct {
	Name, Image string
	Command     []string
	Env         []struct{ Name, Value string }
	Ports       []struct{ ContainerPort int }
}

// TestDocument runs what docs/prestart.md shows.
func TestDocument(t *testing.T) {
	d := readDocument(t)
	var (
		lines      = d.find(t, "yaml", "collectstatic")
		folder     = d.find(t, "yaml", "configMap")
		handOver   = d.find(t, "sh", "SKEP_ENV")
		compose    = d.find(t, "yaml", "service_completed_successfully")
		lock       = d.find(t, "yaml", "SKEP_PRESTART_LOCK")
		advisory   = d.find(t, "sql", "pg_advisory_lock")
		job        = d.find(t, "yaml", "kind: Job")
		swarm      = d.find(t, "sh", "docker service create")
		dockerfile = d.find(t, "dockerfile", "ENTRYPOINT")
		output     = d.find(t, "", "skep: step 1 of 2")
		deployment = d.find(t, "yaml", "kind: Deployment")
	)
	for _, s := range d.snippets {
		if !s.used {
			t.Errorf("no test uses this:\n```%s\n%s```", s.language, s.text)
		}
	}

	t.Run("image", func(t *testing.T) { documentImage(t, dockerfile, output) })

	t.Run("lines of commands", func(t *testing.T) {
		var snippet struct{ Environment map[string]string }
		yaml(t, lines, &snippet)
		s := newSandbox(t, "python")
		if code, out := s.run(snippet.Environment, "prestart"); code != 0 {
			t.Errorf("exit code %d: %s", code, out)
		}
		if ran, want := s.ran(), "python manage.py migrate --noinput\npython manage.py collectstatic --noinput\n"; ran != want {
			t.Errorf("ran %q, want %q", ran, want)
		}
	})

	t.Run("folder from a ConfigMap", func(t *testing.T) {
		var snippet struct {
			Volumes []struct {
				Name      string
				ConfigMap struct {
					Name        string
					DefaultMode os.FileMode
				}
			}
		}
		yaml(t, folder, &snippet)
		// As the kubelet lays it out: links to links to a folder of its own.
		s := newSandbox(t)
		steps, hidden := filepath.Join(s.dir, "steps"), filepath.Join(s.dir, "steps", "..2026_01_02")
		if err := os.MkdirAll(hidden, 0o700); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"10-migrate.sh", "20-seed"} {
			path := filepath.Join(hidden, name)
			if err := os.WriteFile(path, []byte("#!/bin/sh\necho "+name+" >>"+s.dir+"/ran\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(path, snippet.Volumes[0].ConfigMap.DefaultMode); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(filepath.Join("..data", name), filepath.Join(steps, name)); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Symlink("..2026_01_02", filepath.Join(steps, "..data")); err != nil {
			t.Fatal(err)
		}
		if code, out := s.run(nil, "prestart", "--prestart-dir", steps); code != 0 {
			t.Errorf("exit code %d: %s", code, out)
		}
		if ran := s.ran(); ran != "10-migrate.sh\n20-seed\n" {
			t.Errorf("ran %q", ran)
		}
	})

	t.Run("hand over", func(t *testing.T) {
		s := newSandbox(t)
		secret := filepath.Join(s.dir, "secret")
		if err := os.WriteFile(secret, []byte(`it's "$HOME"`), 0o600); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(handOver, "/run/secrets/db") {
			t.Fatalf("the snippet reads another secret:\n%s", handOver)
		}
		if err := os.WriteFile(filepath.Join(s.dir, "step"), []byte(strings.ReplaceAll(handOver, "/run/secrets/db", secret)), 0o700); err != nil {
			t.Fatal(err)
		}
		code, out := s.run(nil, "--log-level", "error", "--prestart", "step", "--", "sh", "-c", `printf "%s\n" "$DATABASE_PASSWORD"`)
		if want := `it's "$HOME"` + "\n"; code != 0 || out != want {
			t.Errorf("exit code %d, %q, want %q", code, out, want)
		}
	})

	t.Run("Compose", func(t *testing.T) {
		var snippet struct{ Services map[string]service }
		yaml(t, compose, &snippet)
		migrate, shop := snippet.Services["migrate"], snippet.Services["shop"]
		if migrate.Image != shop.Image || shop.DependsOn["migrate"].Condition == "" {
			t.Errorf("services %+v", snippet.Services)
		}
		s := newSandbox(t, "alembic", "uvicorn")
		image := map[string]string{"SKEP_PRESTART": "alembic upgrade head"}
		if code, out := s.run(image, migrate.Entrypoint[1:]...); migrate.Entrypoint[0] != "/skep" || code != 0 {
			t.Errorf("entrypoint %q: exit code %d: %s", migrate.Entrypoint, code, out)
		}
		if ran := s.ran(); ran != "alembic upgrade head\n" {
			t.Errorf("migrate ran %q", ran)
		}
		for name, value := range shop.Environment {
			image[name] = value
		}
		if code, out := s.run(image, "--", "uvicorn", "app:app"); code != 0 {
			t.Errorf("exit code %d: %s", code, out)
		}
		if ran := s.ran(); ran != "uvicorn app:app\n" {
			t.Errorf("shop ran %q", ran)
		}
	})

	t.Run("lock", func(t *testing.T) {
		var snippet struct {
			Services map[string]service
			Volumes  map[string]any
		}
		yaml(t, lock, &snippet)
		shop := snippet.Services["shop"]
		volume, folder, _ := strings.Cut(shop.Volumes[0], ":")
		if _, named := snippet.Volumes[volume]; !named || !strings.HasPrefix(shop.Environment["SKEP_PRESTART_LOCK"], folder+"/") {
			t.Errorf("the lock %q is not on the volume %q", shop.Environment["SKEP_PRESTART_LOCK"], shop.Volumes[0])
		}
		s := newSandbox(t, "alembic")
		shop.Environment["SKEP_PRESTART_LOCK"] = strings.Replace(shop.Environment["SKEP_PRESTART_LOCK"], folder, s.dir, 1)
		for range shop.Deploy.Replicas {
			if code, out := s.run(shop.Environment, "--", "true"); code != 0 {
				t.Errorf("exit code %d: %s", code, out)
			}
		}
		if ran := s.ran(); ran != "alembic upgrade head\n" {
			t.Errorf("%d replicas ran %q", shop.Deploy.Replicas, ran)
		}
		if _, err := os.Stat(filepath.Join(s.dir, "shop.1.4.done")); err != nil {
			t.Error(err)
		}
	})

	t.Run("database as the lock", func(t *testing.T) {
		db := startDatabase(t, imageOn(t, "skep-test/postgres:bookworm"))
		r := db.c.Exec("sh", "-c", `cd /dev/shm && printf %s "$2" >migrate.sql && printf %s "$1" | psql --no-psqlrc --quiet --tuples-only --no-align --set=ON_ERROR_STOP=1`,
			"sh", advisory, `select 'held ' || count(*) from pg_locks where locktype = 'advisory' and granted and pid = pg_backend_pid();`)
		if r.Code != 0 || strings.TrimSpace(r.Stdout) != "held 1" {
			t.Errorf("exit code %d, stdout %q, stderr %q; want the migration to hold one lock", r.Code, r.Stdout, r.Stderr)
		}
	})

	t.Run("Job", func(t *testing.T) {
		var snippet struct {
			APIVersion string
			Kind       string
			Metadata   struct {
				Name        string
				Annotations map[string]string
			}
			Spec struct {
				BackoffLimit int
				Template     struct {
					Spec struct {
						RestartPolicy string
						Containers    []container
					}
				}
			}
		}
		yaml(t, job, &snippet)
		c := snippet.Spec.Template.Spec.Containers[0]
		s := newSandbox(t, "alembic")
		if code, out := s.run(map[string]string{"SKEP_PRESTART": "alembic upgrade head"}, c.Command[1:]...); c.Command[0] != "/skep" || code != 0 {
			t.Errorf("command %q: exit code %d: %s", c.Command, code, out)
		}
		if ran := s.ran(); ran != "alembic upgrade head\n" {
			t.Errorf("ran %q", ran)
		}
	})

	t.Run("Swarm", func(t *testing.T) {
		s := newSandbox(t, "alembic")
		// Docker splits the entrypoint as a shell does.
		docker := "#!/bin/bash\n" + `[[ "$1 $2" = "service create" ]]; while [[ "$1" != --entrypoint ]]; do shift; done; set -- $2
[[ $1 = /skep ]]; shift; exec ` + skep + ` "$@"` + "\n"
		if err := os.WriteFile(filepath.Join(s.dir, "docker"), []byte(docker), 0o700); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("sh", "-ec", swarm)
		cmd.Env = append(os.Environ(), "PATH="+s.dir+":"+os.Getenv("PATH"), "SKEP_PRESTART=alembic upgrade head")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
		if ran := s.ran(); ran != "alembic upgrade head\n" {
			t.Errorf("ran %q", ran)
		}
		testneed.Program(t, "docker")
		help, err := exec.Command("docker", "service", "create", "--help").Output()
		if err != nil {
			t.Fatal(err)
		}
		for _, flag := range regexp.MustCompile(`--[a-z-]+`).FindAllString(swarm, -1) {
			if !strings.Contains(string(help), " "+flag+" ") {
				t.Errorf("docker service create knows no %s", flag)
			}
		}
	})

	t.Run("Deployment", func(t *testing.T) { documentPod(t, deployment) })

	t.Run("written commands", func(t *testing.T) {
		rows := table(t, d.text, "written", "what happens")
		s := newSandbox(t, "alembic", "psql", "migrate", "seed", "uvicorn")
		for _, row := range rows {
			for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(row[0], -1) {
				code, out := s.run(map[string]string{"SKEP_PRESTART": m[1]}, "prestart")
				ran := s.ran()
				switch runs := strings.HasPrefix(row[1], "runs"); {
				case runs && (code != 0 || ran == ""):
					t.Errorf("%s: exit code %d, want it to run: %s", m[1], code, out)
				case !runs && (code != 125 || ran != ""):
					t.Errorf("%s: exit code %d, ran %q; want an error", m[1], code, ran)
				}
			}
		}
	})

	t.Run("flags", func(t *testing.T) {
		help, err := exec.Command(skep, "--help").Output()
		if err != nil {
			t.Fatal(err)
		}
		for _, row := range table(t, d.text, "flag", "default", "meaning") {
			flag, byDefault := strings.Trim(row[0], "`"), strings.Trim(row[1], "`")
			name, _, _ := strings.Cut(flag, " ")
			line := regexp.MustCompile(`(?m)^\s+` + name + `\b.*$`).FindString(string(help))
			if line == "" {
				t.Errorf("skep knows no %s", name)
			}
			_, told, _ := strings.Cut(strings.TrimSuffix(line, ")"), "(default: ")
			if byDefault == "–" || byDefault == "false" {
				byDefault = ""
			}
			if told != byDefault {
				t.Errorf("the default of %s is %q, the document has %q", name, told, byDefault)
			}
		}
	})
}

// table returns the rows of the table with these headings.
func table(t *testing.T, text string, headings ...string) (rows [][]string) {
	t.Helper()
	_, after, found := strings.Cut(text, "\n| "+strings.Join(headings, " | ")+" |\n")
	if !found {
		t.Fatalf("no table has the headings %q", headings)
	}
	for line := range strings.Lines(after) {
		if !strings.HasPrefix(line, "|") {
			break
		}
		if strings.HasPrefix(line, "|---") {
			continue
		}
		var row []string
		for _, cell := range strings.Split(strings.Trim(strings.TrimSpace(line), "|"), " | ") {
			row = append(row, strings.TrimSpace(cell))
		}
		rows = append(rows, row)
	}
	if len(rows) == 0 {
		t.Fatalf("the table with the headings %q has no rows", headings)
	}
	return rows
}

// documentImage builds the image, lets it wait for a database that comes late,
// and compares what it says with what the document shows.
func documentImage(t *testing.T, dockerfile, output string) {
	t.Helper()
	imageOn(t, "debian:bookworm-slim")
	dir := t.TempDir()
	for name, text := range map[string]string{
		"Dockerfile": dockerfile,
		"alembic":    "#!/bin/sh\n[ \"$*\" = 'upgrade head' ] && echo 'INFO  [alembic.runtime.migration] Running upgrade 1975ea -> 27c6a3'\n",
		"uvicorn":    "#!/bin/sh\necho \"uvicorn $*\"\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil { //nolint:gosec // programs of the image
			t.Fatal(err)
		}
	}
	for _, name := range []string{"skep", "hello"} {
		if err := os.Link(filepath.Join(root, "build", name), filepath.Join(dir, name)); err != nil {
			text, err := os.ReadFile(filepath.Join(root, "build", name))
			if err == nil {
				err = os.WriteFile(filepath.Join(dir, name), text, 0o755) //nolint:gosec // as above
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	image := dockertest.Build(t, dir, "Dockerfile")
	path := "--env=PATH=/app:/usr/bin:/bin"
	db := dockertest.Run(t, dockertest.Options{
		Image: image, Flags: []string{"--network-alias=db", "--env=SKEP_WAIT=", "--env=SKEP_PRESTART=", path},
		Args: []string{"sh", "-c", "until [ -e /open ]; do sleep 0.1; done; exec hello -addr :5432"},
	})
	c := dockertest.Run(t, dockertest.Options{Image: image, Flags: []string{path}})
	c.WaitLog("waiting for", 2, within)
	if r := db.Exec("touch", "/open"); r.Code != 0 {
		t.Fatal(r.Stderr)
	}
	if code := c.Wait(within); code != 0 {
		t.Fatalf("exit code %d:\n%s", code, c.Logs())
	}
	said := c.Logs()
	if want := "uvicorn app:app --host 0.0.0.0 --port 8000\n"; !strings.Contains(said, want) {
		t.Errorf("the command was not %q:\n%s", want, said)
	}
	shape := func(text string) (lines []string) {
		for line := range strings.Lines(text) {
			line = regexp.MustCompile(`\b(\d+m)?[\d.]+m?s\b`).ReplaceAllString(line, "TIME")
			line = regexp.MustCompile(`pid \d+`).ReplaceAllString(line, "pid N")
			if !strings.HasPrefix(line, "uvicorn") {
				lines = append(lines, line)
			}
		}
		slices.Sort(lines) // stdout comes before stderr in the log
		return slices.Compact(lines)
	}
	if got, want := shape(said), shape(output); !slices.Equal(got, want) {
		t.Errorf("skep says\n%swhere the document has\n%s", strings.Join(got, ""), strings.Join(want, ""))
	}
}
