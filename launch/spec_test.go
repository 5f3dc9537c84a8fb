package launch

import (
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestSpecSurvivesTheCommandLine(t *testing.T) {
	adj := -999
	for _, s := range []Spec{
		{},
		{Filter: true, NotifyFD: 3},
		{ListenPID: true, KSM: true},
		{User: &User{UID: 1000, GID: 1001}},
		{Named: true},
		{User: &User{UID: 0, GID: 4294967294, Groups: []uint32{0, 4, 4294967294}}},
		{Filter: true, NotifyFD: 117, ListenPID: true, User: &User{UID: 1, GID: 2, Groups: []uint32{3}}, OOMScoreAdj: &adj, KSM: true},
	} {
		_, args := Command("/skep", s, []string{"prog", "-x", "", "a b"})
		if !Is(args) {
			t.Errorf("%q is not the stub's command line", args)
		}
		if strings.ContainsAny(args[1], " \t\n") {
			t.Errorf("the spec %q has spaces", args[1])
		}
		got, argv, err := parse(args)
		if err != nil || !reflect.DeepEqual(got, s) || !slices.Equal(argv, []string{"prog", "-x", "", "a b"}) {
			t.Errorf("parse(%q) = %+v, %q, %v, want %+v", args, got, argv, err, s)
		}
	}
}

func TestBrokenSpecsAreRefused(t *testing.T) {
	for _, args := range [][]string{
		nil,
		{Name},
		{Name, "v=1"},
		{Name, "v=1", "--"},
		{Name, "v=1", "prog", "x"},
		{Name, "", "--", "prog"},
		{Name, "v=2", "--", "prog"},
		{Name, "v=12", "--", "prog"},
		{Name, "v=1,filter=", "--", "prog"},
		{Name, "v=1,filter=2", "--", "prog"},
		{Name, "v=1,uid=-1", "--", "prog"},
		{Name, "v=1,uid=4294967296", "--", "prog"},
		{Name, "v=1,groups=1::2", "--", "prog"},
		{Name, "v=1,oom=x", "--", "prog"},
		{Name, "v=1,named=1", "--", "prog"},
		{Name, "v=1,new=1", "--", "prog"},
		{Name, "v=1,", "--", "prog"},
	} {
		if s, argv, err := parse(args); err == nil {
			t.Errorf("parse(%q) = %+v, %q, want an error", args, s, argv)
		}
	}
}

func FuzzSpec(f *testing.F) {
	f.Add("v=1,filter=3,listen-pid=1,uid=1,gid=2,groups=3:4,oom=5,ksm=1")
	f.Add("v=1,groups=")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := decode(text)
		if err != nil {
			return
		}
		again, err := decode(s.encode())
		if err != nil || !reflect.DeepEqual(s, again) {
			t.Errorf("%q became %+v, and after encoding %+v, %v", text, s, again, err)
		}
	})
}
