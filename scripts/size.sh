#!/bin/bash
# Shows how big skep is: its file, the modules in it, and its memory while it
# runs one worker and four. Fails when the file is larger than allowed.
#
#   size.sh build/skep 4500000
set -euo pipefail

skep=${1:?want the program}
max=${2:?want the largest size allowed, in bytes}

size=$(stat -c %s "$skep")
echo "size: $skep has $size bytes, at most $max are allowed"
echo "size: modules in it:"
go version -m "$skep" | awk '$1 == "mod" || $1 == "dep" { print "  " $2, $3 }'

# rss WORKERS: skep's resident memory with that many workers, once all run.
rss() {
	local pid deadline=$((SECONDS + 20))
	"$skep" -w "$1" --restart never -- sleep 60 2>/dev/null &
	pid=$!
	until [[ $(ps -o pid= --ppid "$pid" | wc -l) -eq $1 ]]; do
		if ((SECONDS > deadline)) || ! kill -0 "$pid" 2>/dev/null; then
			echo "size: $skep -w $1 did not start its workers within 20 s" >&2
			kill -KILL "$pid" 2>/dev/null || true
			return 1
		fi
		read -rt 0.05 <> <(:) || true
	done
	awk -v n="$1" '/^VmRSS/ { printf "size: resident memory with %d worker(s): %d KiB\n", n, $2 }' "/proc/$pid/status"
	kill -TERM "$pid"
	wait "$pid" || true
}

rss 1
rss 4

if ((size > max)); then
	echo "size: $((size - max)) bytes too large" >&2
	exit 1
fi
