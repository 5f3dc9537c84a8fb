package logger

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"
)

func TestText(t *testing.T) {
	for _, c := range []struct {
		level  Level
		fields []Field
		want   string
	}{
		{Info, nil, "skep: worker ended\n"},
		{Warn, []Field{{"slot", 1}, {"uptime", 3217 * time.Millisecond}}, "skep: warning: worker ended slot=1 uptime=3.22s\n"},
		{Error, []Field{{"error", "no such file"}}, "skep: error: worker ended error=\"no such file\"\n"},
		{Info, []Field{{"a", ""}, {"b", "x=y"}, {"c", true}}, "skep: worker ended a=\"\" b=\"x=y\" c=true\n"},
		{Info, []Field{{"a", "\xff"}, {"b", "two\nlines"}}, "skep: worker ended a=\"\\xff\" b=\"two\\nlines\"\n"},
	} {
		if got := string(AppendText(nil, c.level, "worker ended", c.fields)); got != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
}

func FuzzJSON(f *testing.F) {
	f.Add("worker ended", "slot", "a\"b\\c\n\x00\xff")
	f.Fuzz(func(t *testing.T, msg, key, value string) {
		line := appendJSON(nil, time.Unix(0, 0), Warn, msg, []Field{{key, value}, {"n", -7}, {"d", 1500 * time.Millisecond}})
		if bytes.Count(line, []byte("\n")) != 1 {
			t.Fatalf("not one line: %q", line)
		}
		var got map[string]any
		if err := json.Unmarshal(line, &got); err != nil {
			t.Fatalf("%v: %q", err, line)
		}
		if want := strings.ToValidUTF8(value, "�"); key != "n" && key != "d" && len(value) < 2 && got[key] != want {
			t.Fatalf("value %q came back as %q", want, got[key])
		}
	})
}

// A stderr that nobody reads must not hold up those who log, and what was lost
// is counted for the reader who comes back.
func TestFullStderrNeverBlocks(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	l := New(int(w.Fd()), Info, Text, time.Now)
	long := strings.Repeat("x", 1000)
	const lines = 3 * queueLines
	for range lines {
		l.Log(Info, long)
	}
	seen := make(chan string)
	go func() {
		var all bytes.Buffer
		buf := make([]byte, 1<<16)
		for !strings.Contains(all.String(), "end of test") {
			n, err := r.Read(buf)
			if err != nil {
				break
			}
			all.Write(buf[:n])
		}
		seen <- all.String()
	}()
	for l.dropped.Load() > 0 { // the writer has come to the line after the lost ones
		l.Log(Info, long)
	}
	for l.dropped.Load() == 0 && len(l.lines) == cap(l.lines) {
	}
	l.Log(Info, "end of test")
	l.Close(10 * time.Second)
	w.Close()
	got := <-seen
	if !strings.Contains(got, "log lines lost because stderr was full lines=") {
		t.Error("nothing says that lines were lost")
	}
	if n := strings.Count(got, long); n >= lines {
		t.Errorf("all %d lines came through: the pipe was never full and the test shows nothing", n)
	}
}

func TestLevels(t *testing.T) {
	for _, name := range []string{"debug", "info", "warning", "error"} {
		l, ok := ParseLevel(name)
		if !ok || l.String() != name {
			t.Errorf("%s came back as %v, %v", name, l, ok)
		}
	}
	if l, ok := ParseLevel("warn"); !ok || l != Warn {
		t.Error("warn is not taken for warning")
	}
	if _, ok := ParseLevel("loud"); ok {
		t.Error("loud is no level")
	}
}
