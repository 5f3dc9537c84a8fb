// Package migrate holds the stories of the steps before the start: a real
// database that is migrated once by many replicas, stops at any moment, an init
// container beside its main container, and every snippet of docs/prestart.md.
// As in package e2e, nothing here knows skep's insides but its constants.
package migrate
