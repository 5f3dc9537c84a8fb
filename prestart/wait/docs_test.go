package wait

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
	document := strings.Join(strings.Fields(string(text)), " ")
	if lastPause != 4*firstPause || lastPause.Seconds() != 1 {
		t.Errorf("the pauses from %v to %v are not three, the last of a second", firstPause, lastPause)
	}
	want := fmt.Sprintf("the next after %d ms, then every %d ms and every second. A line says what is missing when the first try failed, and every %g s from then on.",
		firstPause.Milliseconds(), (2 * firstPause).Milliseconds(), progress.Seconds())
	if !strings.Contains(document, want) {
		t.Errorf("the document does not say %q", want)
	}
}
