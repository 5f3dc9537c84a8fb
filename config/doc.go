// Package config turns flags and environment into the options of package initd.
//
// Invariant: everything a user can get wrong is found here, all at once, before
// anything is started; each problem is one line that names the flag or the
// variable, the value and what is allowed. Nothing here reads a file or the
// process's own environment: both are handed in.
package config
