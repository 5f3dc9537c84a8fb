package prestart

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// The times in the document are the constants.
func TestDocumentedTimes(t *testing.T) {
	text, err := os.ReadFile("../docs/prestart.md")
	if err != nil {
		t.Fatal(err)
	}
	document := strings.Join(strings.Fields(string(text)), " ")
	seconds := func(d time.Duration) string { return fmt.Sprintf("%g s", d.Seconds()) }
	for _, want := range []string{
		fmt.Sprintf("after %s, %s, %s and so on, at most %s.", seconds(DefaultRetryDelay), seconds(2*DefaultRetryDelay), seconds(4*DefaultRetryDelay), seconds(DefaultRetryMaxDelay)),
		"KILL " + seconds(DefaultGrace) + " later.",
		"`--stop-timeout` (" + seconds(DefaultStopTimeout) + " unless",
		fmt.Sprintf("| %d | it took longer than `--prestart-timeout`", codeTimeout),
		fmt.Sprintf("| %d | skep could not do its part", codeSkep),
		fmt.Sprintf("| %d, %d | the program cannot be executed, is not found |", codeCannot, codeNotFound),
		fmt.Sprintf("| %d + n | it died of signal n |", codeSignal),
	} {
		if !strings.Contains(document, want) {
			t.Errorf("the document does not say %q", want)
		}
	}
}
