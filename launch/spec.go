package launch

import (
	"errors"
	"strconv"
	"strings"
)

// Name is argv[0] of the stub.
const Name = "skep-launch"

// Spec says what the stub does before it executes the command. The zero Spec only restores the signals.
type Spec struct {
	// Filter asks for the seccomp filter of bind sharing, whose listener goes to NotifyFD. It sets no_new_privs.
	Filter bool
	// NotifyFD is the stub's descriptor of a unix socket over which it sends the listener, or the reason why there is none, as package port reads it
	// (ReceiveListener). The stub closes it. Used with Filter only; it must be 3 or more.
	NotifyFD int
	// ListenPID sets LISTEN_PID to the worker's own pid (sd_listen_fds(3)), which only the new process knows.
	ListenPID bool
	// User is whom the worker runs as, nil for no change.
	User *User
	// OOMScoreAdj is written to /proc/self/oom_score_adj, -1000 to 1000; nil for no change. A refusal is reported and does not stop the start.
	OOMScoreAdj *int
	// KSM asks for same-page merging (PR_SET_MEMORY_MERGE, Linux 6.4); it survives execve. A refusal is reported and does not stop the start.
	KSM bool
	// Named says that the program is to be called by a name of its own: the first argument is only what is executed, and argv[0] follows it.
	Named bool
}

// User is a user id, a group id and the supplementary groups, all of them set exactly as given. When the process has that user and group already, none
// of them is touched, so that a plain user may name itself.
type User struct {
	UID, GID uint32
	Groups   []uint32
}

// encode writes the spec as comma-separated key=value pairs without spaces, which is readable in ps(1).
func (s Spec) encode() string {
	fields := []string{"v=1"}
	if s.Filter {
		fields = append(fields, "filter="+strconv.Itoa(s.NotifyFD))
	}
	if s.ListenPID {
		fields = append(fields, "listen-pid=1")
	}
	if s.User != nil {
		groups := make([]string, len(s.User.Groups))
		for i, g := range s.User.Groups {
			groups[i] = strconv.FormatUint(uint64(g), 10)
		}
		fields = append(fields,
			"uid="+strconv.FormatUint(uint64(s.User.UID), 10),
			"gid="+strconv.FormatUint(uint64(s.User.GID), 10),
			"groups="+strings.Join(groups, ":"))
	}
	if s.OOMScoreAdj != nil {
		fields = append(fields, "oom="+strconv.Itoa(*s.OOMScoreAdj))
	}
	if s.KSM {
		fields = append(fields, "ksm=1")
	}
	if s.Named {
		fields = append(fields, "named=1")
	}
	return strings.Join(fields, ",")
}

var errSpec = errors.New("cannot read the launch spec")

// decode is the inverse of encode. It accepts nothing else: a field it does not know means that stub and skep are not the same program.
func decode(text string) (Spec, error) {
	var s Spec
	rest, found := strings.CutPrefix(text, "v=1")
	if !found {
		return s, errSpec
	}
	for rest != "" {
		field, found := strings.CutPrefix(rest, ",")
		if !found {
			return s, errSpec
		}
		rest = ""
		if i := strings.IndexByte(field, ','); i >= 0 {
			field, rest = field[:i], field[i:]
		}
		key, value, _ := strings.Cut(field, "=")
		if err := s.set(key, value); err != nil {
			return s, errSpec
		}
	}
	return s, nil
}

func (s *Spec) set(key, value string) (err error) {
	switch key {
	case "filter":
		s.Filter = true
		s.NotifyFD, err = strconv.Atoi(value)
		if err == nil && s.NotifyFD < 3 {
			err = errSpec
		}
	case "listen-pid":
		s.ListenPID = true
	case "uid":
		s.user().UID, err = parseID(value)
	case "gid":
		s.user().GID, err = parseID(value)
	case "groups":
		u := s.user()
		for value != "" && err == nil {
			var one string
			one, value, _ = strings.Cut(value, ":")
			var g uint32
			g, err = parseID(one)
			u.Groups = append(u.Groups, g)
		}
	case "oom":
		var n int
		n, err = strconv.Atoi(value)
		s.OOMScoreAdj = &n
	case "ksm":
		s.KSM = true
	case "named":
		s.Named = true
	default:
		err = errSpec
	}
	return err
}

func (s *Spec) user() *User {
	if s.User == nil {
		s.User = &User{}
	}
	return s.User
}

func parseID(text string) (uint32, error) {
	n, err := strconv.ParseUint(text, 10, 32)
	return uint32(n), err
}

// Command returns what the caller of fork and exec must execute to start argv through the stub: self is the path of the skep binary (/proc/self/exe is
// resolved in the new process and so always this very binary), args its argument vector. The environment given to that execve is the worker's.
func Command(self string, spec Spec, argv []string) (path string, args []string) {
	args = make([]string, 0, len(argv)+3)
	args = append(args, Name, spec.encode(), "--")
	return self, append(args, argv...)
}

// Is says whether a process with these arguments is the stub. main asks first of all, and calls Main if so.
func Is(argv []string) bool {
	return len(argv) > 0 && argv[0] == Name
}
