package prestart

import (
	"fmt"
	"strings"
	"time"
)

var whats = map[What]string{
	StepStarted: "started", StepEnded: "ended", StepFailed: "failed", StepRetrying: "retrying", TimedOut: "timed out",
	Killed: "killed", Locked: "locked", Skipped: "skipped", NoLock: "no lock", NoStamp: "no stamp", Stopping: "stopping",
}

// render writes effects shortly, so that an expectation fits on a line.
func render(effects []Effect) string {
	var list []string
	for _, e := range effects {
		switch e := e.(type) {
		case TakeLock:
			list = append(list, "lock")
		case WriteStamp:
			list = append(list, "stamp")
		case ReleaseLock:
			list = append(list, map[bool]string{true: "open lock", false: "close lock"}[e.Done])
		case Run:
			list = append(list, "run "+e.Step.Name)
		case Signal:
			list = append(list, fmt.Sprintf("signal %d", e.Sig))
		case KillTree:
			list = append(list, "kill")
		case Note:
			list = append(list, "("+whats[e.What]+")")
		case Finished:
			text := fmt.Sprintf("finished %d", e.Code)
			if e.Stopped {
				text += " stopped"
			}
			list = append(list, text)
		default:
			list = append(list, fmt.Sprintf("%T", e))
		}
	}
	if list == nil {
		return "-"
	}
	return strings.Join(list, ", ")
}

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// steps makes n commands named a, b, c, ….
func steps(n int, change func(*Step)) []Step {
	list := make([]Step, n)
	for i := range list {
		name := string(rune('a' + i))
		list[i] = Step{Kind: Command, Name: name, Argv: []string{name}}
		if change != nil {
			change(&list[i])
		}
	}
	return list
}
