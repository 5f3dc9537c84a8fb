package dial

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"strings"
)

// The message format of RFC 1035, section 4, as far as one question needs it.
// x/net's dnsmessage would add 35 kB to the binary; the tests speak it.

type recordType uint16

const (
	typeA    recordType = 1  // RFC 1035, section 3.2.2
	typeAAAA recordType = 28 // RFC 3596
)

const (
	classInternet  = 1
	flagRecursion  = 0x0100 // RD
	flagResponse   = 0x8000 // QR
	codeMask       = 0x000f
	codeNameError  = 3 // NXDOMAIN
	headerLength   = 12
	pointerMask    = 0xc0
	labelLimit     = 63
	nameLimit      = 254 // as text, with the dot at the end
	recordFixed    = 10  // type, class, time to live, length
	questionLength = 4   // type, class
)

var (
	errName   = errors.New("not a name that can be asked for")
	errServer = errors.New("the name cannot be looked up: the name server failed")
)

// packQuery makes a recursive question for one kind of address of a full name,
// which ends in a dot.
func packQuery(id uint16, name string, kind recordType) ([]byte, error) {
	if len(name) > nameLimit || !strings.HasSuffix(name, ".") {
		return nil, errName
	}
	m := make([]byte, headerLength, headerLength+len(name)+1+questionLength)
	binary.BigEndian.PutUint16(m[0:], id)
	binary.BigEndian.PutUint16(m[2:], flagRecursion)
	binary.BigEndian.PutUint16(m[4:], 1) // questions
	for _, label := range strings.Split(name[:len(name)-1], ".") {
		if label == "" || len(label) > labelLimit {
			return nil, errName
		}
		m = append(append(m, byte(len(label))), label...)
	}
	m = append(m, 0)
	m = binary.BigEndian.AppendUint16(m, uint16(kind))
	return binary.BigEndian.AppendUint16(m, classInternet), nil
}

// readAnswer takes the addresses out of the answer to query. Those behind an
// alias come in the same answer from a recursive server, so the owner of a
// record is not compared, but the question is. A truncated answer is used for
// what it has: one address is enough to connect.
func readAnswer(answer, query []byte, kind recordType) ([]netip.Addr, error) {
	if len(answer) < len(query) || answer[0] != query[0] || answer[1] != query[1] {
		return nil, errServer
	}
	flags := binary.BigEndian.Uint16(answer[2:])
	questions := binary.BigEndian.Uint16(answer[4:])
	// Servers may change the case of the question, and nothing else of it.
	same := strings.EqualFold(string(answer[headerLength:len(query)]), string(query[headerLength:]))
	if flags&flagResponse == 0 || questions != 1 || !same {
		return nil, errServer
	}
	switch flags & codeMask {
	case 0:
	case codeNameError:
		return nil, ErrNotFound
	default:
		return nil, errServer
	}
	var found []netip.Addr
	rest := answer[len(query):]
	for range binary.BigEndian.Uint16(answer[6:]) {
		rest = skipName(rest)
		if len(rest) < recordFixed {
			break
		}
		is := recordType(binary.BigEndian.Uint16(rest))
		length := int(binary.BigEndian.Uint16(rest[8:]))
		if len(rest) < recordFixed+length {
			break
		}
		data := rest[recordFixed : recordFixed+length]
		rest = rest[recordFixed+length:]
		if a, ok := netip.AddrFromSlice(data); ok && is == kind && a.Is4() == (kind == typeA) {
			found = append(found, a)
		}
	}
	if len(found) == 0 {
		return nil, ErrNotFound
	}
	return found, nil
}

// skipName returns what follows a name, nil when the name does not end.
func skipName(m []byte) []byte {
	for len(m) > 0 {
		length := int(m[0])
		switch {
		case length == 0:
			return m[1:]
		case length&pointerMask == pointerMask: // the rest stands elsewhere
			return m[min(2, len(m)):]
		case length&pointerMask != 0 || len(m) < 1+length:
			return nil
		}
		m = m[1+length:]
	}
	return nil
}
