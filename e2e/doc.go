// Package e2e holds the stories of skep's users, told from outside: the built
// binary in whole containers, and as a whole command in scripts under
// testdata/script. Nothing here knows skep's insides.
//
// The stories need build/skep and build/hello, which the tests build
// themselves, and those in containers need a Docker engine and the images that
// "make images" makes.
package e2e
