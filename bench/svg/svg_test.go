package svg_test

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"strings"
	"testing"

	"skep/bench/svg"
)

// elements parses the picture and counts its elements by name.
func elements(t *testing.T, b []byte) map[string]int {
	t.Helper()
	n := map[string]int{}
	d := xml.NewDecoder(bytes.NewReader(b))
	for {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			return n
		}
		if err != nil {
			t.Fatalf("not well-formed: %v\n%s", err, b)
		}
		if s, ok := tok.(xml.StartElement); ok {
			n[s.Name.Local]++
			for _, a := range s.Attr {
				if strings.Contains(a.Value, "NaN") || strings.Contains(a.Value, "Inf") {
					t.Errorf("<%s %s=%q>", s.Name.Local, a.Name.Local, a.Value)
				}
			}
		}
	}
}

func TestChartsAreWellFormed(t *testing.T) {
	odd := []float64{math.NaN(), 1, math.Inf(1), 3}
	lines := svg.Lines("a < b & \"c\"", svg.Axis{Label: "share", Nines: true}, svg.Axis{Label: "ms", Log: true},
		[]svg.Line{{"<skep>", []float64{0, 0.5, 0.9, 1}, odd}, {"other", []float64{0, 0.5}, []float64{1, 2}}, {"empty", nil, nil}})
	n := elements(t, lines)
	if !strings.Contains(string(lines), "&lt;skep&gt;") {
		t.Error("names are not escaped")
	}
	if n["svg"] != 1 || n["title"] != 1 {
		t.Errorf("%v", n)
	}
	bars := elements(t, svg.Bars("bars", "n", []svg.Group{{"one with a long name", odd}, {"two", []float64{5, 1}}}))
	// The background, and every finite bar.
	if bars["rect"] != 1+2+2 {
		t.Errorf("%d rectangles, want 5", bars["rect"])
	}
	strips := elements(t, svg.Strips("strips", "n", []string{"failed", "slow"}, -1, 0.5,
		[]svg.Strip{{"a", [][]float64{{0, 2, 0}, {1, 1, math.NaN()}}}, {"b", nil}}))
	// The background, two for the legend, three bars above zero.
	if strips["rect"] != 1+2+3 {
		t.Errorf("%d rectangles, want 6", strips["rect"])
	}
	elements(t, svg.Lines("", svg.Axis{}, svg.Axis{}, nil))
	elements(t, svg.Bars("", "", nil))
	elements(t, svg.Strips("", "", nil, 0, 1, nil))
}
