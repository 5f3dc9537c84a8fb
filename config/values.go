package config

import (
	"errors"
	"math"
	"strconv"
	"strings"
	"time"
)

// ParseSize reads an amount of memory in bytes: a bare number, or one with K, M,
// G, T (powers of 1000) or Ki, Mi, Gi, Ti (powers of 1024), as Kubernetes writes
// quantities. Lower-case k, m and g are powers of 1024, as docker run --memory
// takes them. Fractions are allowed: 1.5Gi.
func ParseSize(s string) (uint64, error) {
	bad := errors.New("want a size such as 512M, 512Mi, 1.5Gi or a number of bytes")
	digits := strings.TrimRight(s, "KMGTikmgB")
	factors := map[string]float64{"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12,
		"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
	factor, ok := factors[strings.TrimSuffix(s[len(digits):], "B")]
	if !ok || digits == "" || strings.Trim(digits, "0123456789.") != "" {
		return 0, bad
	}
	if n, err := strconv.ParseUint(digits, 10, 64); err == nil && float64(n)*factor < math.MaxInt64 {
		return n * uint64(factor), nil
	}
	f, err := strconv.ParseFloat(digits, 64)
	if err != nil || f*factor >= math.MaxInt64 {
		return 0, bad
	}
	return uint64(f * factor), nil
}

// ParseDuration reads a time: a Go duration such as 1m30s, or a bare number of
// seconds. It is never negative.
func ParseDuration(s string) (time.Duration, error) {
	bad := errors.New("want a time such as 500ms, 30s, 2m or a number of seconds")
	d, err := time.ParseDuration(s)
	if err != nil {
		if strings.Trim(s, "0123456789.") != "" {
			return 0, bad
		}
		f, ferr := strconv.ParseFloat(s, 64)
		if ferr != nil || f*1e9 >= math.MaxInt64 {
			return 0, bad
		}
		d = time.Duration(f * 1e9)
	}
	if d < 0 {
		return 0, bad
	}
	return d, nil
}

func parseCount(s string, least int) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < least || n > maxCount {
		return 0, errors.New("want a number from " + strconv.Itoa(least) + " to " + strconv.Itoa(maxCount))
	}
	return n, nil
}

// maxCount bounds every count: no more slots than the kernel's largest number of
// sockets in one port group that the steering program can name.
const maxCount = 512

func parseBool(s string) (bool, error) {
	switch strings.ToLower(s) {
	case "true", "1", "yes", "on":
		return true, nil
	case "false", "0", "no", "off", "":
		return false, nil
	}
	return false, errors.New("want true or false")
}

func parsePort(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > 65535 {
		return 0, errors.New("want a port from 1 to 65535")
	}
	return n, nil
}
