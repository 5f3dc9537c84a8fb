#!/bin/bash
# Runs every fuzz target of the module in turn, each for the time given.
#
#   fuzz.sh 30s
set -euo pipefail

time=${1:?want the time for each target, such as 30s}
# Lines "package target".
targets=$(go test -json -list '^Fuzz' ./... |
	sed -n 's/.*"Package":"\([^"]*\)".*"Output":"\(Fuzz[A-Za-z0-9_]*\)\\n".*/\1 \2/p')
if [[ -z "$targets" ]]; then
	echo "fuzz: no fuzz targets"
	exit 0
fi
failed=0
while read -r package target; do
	echo "fuzz: $package $target for $time"
	# The targets are small: two processes leave a small machine usable.
	go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" -parallel 2 "$package" || failed=1
done <<<"$targets"
exit $failed
