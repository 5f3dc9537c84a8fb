module skep

go 1.26.0

require (
	github.com/containerd/cgroups/v3 v3.1.3
	golang.org/x/sys v0.49.0
)

require (
	github.com/google/go-cmp v0.7.0
	github.com/moby/sys/userns v0.1.0 // indirect
	github.com/rogpeppe/go-internal v1.16.0
	golang.org/x/tools v0.26.0 // indirect
	pgregory.net/rapid v1.3.0
)
