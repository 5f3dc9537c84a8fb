// Package house holds no code, only tests that keep the rules of the house:
// which package may import which, what may be linked into process 1, and that
// the documents' links lead somewhere.
package house
