package lock

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// The times in the document are the constants.
func TestDocumentedTimes(t *testing.T) {
	text, err := os.ReadFile("../../docs/prestart.md")
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("the others wait for as long as it takes, with a line every %g s.", progress.Seconds())
	if !strings.Contains(strings.Join(strings.Fields(string(text)), " "), want) {
		t.Errorf("the document does not say %q", want)
	}
}
