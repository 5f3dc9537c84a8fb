package load

import (
	"fmt"
	"testing"
)

// FuzzParse: any split of an answer must be read as its whole is, a prefix is
// never whole with a Content-Length, and nothing makes the parser panic.
func FuzzParse(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 7\r\nX-Pid: 3\r\n\r\npid 12\n"))
	f.Add([]byte("HTTP/1.0 503 Busy\r\nConnection: close\r\n\r\n"))
	f.Add([]byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"))
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"))
	f.Add([]byte("\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, whole, ok := parse(b, false)
		if whole && !ok {
			t.Fatal("whole and unreadable at once")
		}
		if !whole {
			return
		}
		if a.status < 200 || a.status > 599 {
			t.Fatalf("status %d accepted", a.status)
		}
		more, whole2, ok2 := parse(append(b[:len(b):len(b)], "HTTP/1.1 500 next\r\n\r\n"...), false)
		if !whole2 || !ok2 || more != a {
			t.Fatalf("what follows an answer changed it: %+v, then %+v", a, more)
		}
	})
}

func TestParsePrefixesAreNotWhole(t *testing.T) {
	full := []byte("HTTP/1.1 200 OK\r\nX-Pid: 4711\r\nContent-Length: 3\r\n\r\nabc")
	for n := range full {
		if _, whole, ok := parse(full[:n], false); whole || !ok {
			t.Errorf("prefix of %d bytes: whole %v, ok %v", n, whole, ok)
		}
		if _, whole, _ := parse(full[:n], true); whole {
			t.Errorf("prefix of %d bytes and the end of the connection counts as whole", n)
		}
	}
	if a, whole, ok := parse(full, false); !whole || !ok || a != (answer{status: 200, pid: 4711}) {
		t.Errorf("full answer: %+v, %v, %v", a, whole, ok)
	}
	if a, whole, ok := parse([]byte(fmt.Sprintf("HTTP/1.0 200 OK\r\n\r\nhello from pid %d\n", 12)), true); !whole || !ok || a.pid != 12 || !a.close {
		t.Errorf("answer ended by the close: %+v, %v, %v", a, whole, ok)
	}
}
