package main

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"skep/bench/report"
)

// The page in the repository is what its own data give with the rows of today:
// who edits one of the three has to write the page anew with -draw.
func TestPageIsDrawnFromItsData(t *testing.T) {
	docs := filepath.Join("..", "docs")
	stale, err := staleness(docs)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range stale {
		t.Errorf("docs/%s is not what docs/benchmarks.json gives: run go run ./bench -draw", name)
	}
}

// staleness names the files below dir that are not what -draw would write. No
// data and no page is well; one without the other is not.
func staleness(dir string) ([]string, error) {
	there := func(name string) bool {
		_, err := os.Stat(filepath.Join(dir, name))
		return !errors.Is(err, fs.ErrNotExist)
	}
	if !there("benchmarks.json") {
		if there("benchmarks.md") {
			return []string{"benchmarks.md"}, nil
		}
		return nil, nil
	}
	results, err := report.Read(filepath.Join(dir, "benchmarks.json"))
	if err != nil {
		return nil, err
	}
	want := map[string][]byte{"benchmarks.md": results.Markdown()}
	for name, picture := range results.Pictures() {
		want[filepath.Join("img", name)] = picture
	}
	var stale []string
	for name, b := range want {
		have, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if !bytes.Equal(have, b) {
			stale = append(stale, name)
		}
	}
	return stale, nil
}

func TestStalenessIsSeen(t *testing.T) {
	dir := t.TempDir()
	page := filepath.Join(dir, "benchmarks.md")
	expect := func(what string, n int) {
		t.Helper()
		stale, err := staleness(dir)
		if err != nil || len(stale) != n {
			t.Errorf("%s: %q, %v", what, stale, err)
		}
	}
	change := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	results := &report.Results{}
	results.Put(report.Row{Name: "hung", Date: "2026-01-02", Cases: []report.Case{{Name: "5 s", Subjects: []report.Subject{{Name: "skep"}}}}})
	expect("nothing there", 0)
	change(page, "# Benchmarks\n")
	expect("a page without data", 1)
	if err := results.Write(dir); err != nil {
		t.Fatal(err)
	}
	expect("as written", 0)
	change(page, "# Benchmarks\n\nskep is first everywhere.\n")
	expect("a page that was edited", 1)
	if err := os.Remove(page); err != nil {
		t.Fatal(err)
	}
	expect("data without a page", 1)
	if err := results.Write(dir); err != nil {
		t.Fatal(err)
	}
	for name := range results.Pictures() {
		change(filepath.Join(dir, "img", name), "<svg/>")
		expect("a picture that was edited", 1)
	}
}
