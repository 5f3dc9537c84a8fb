// Package svg draws the few kinds of chart of the report as small, plain SVG
// files that follow the reader's light or dark scheme.
//
// gonum/plot was looked at: it is good and kept, but it brings fonts, PDF and
// raster back-ends (some twenty modules) and writes text as positioned glyph
// runs without a style for dark pages; go-echarts needs JavaScript, which
// pictures in a Markdown file do not run.
package svg

import (
	"bytes"
	"fmt"
	"html"
	"math"
	"strconv"
)

// Line is one named function in a Lines chart; X ascends.
type Line struct {
	Name string
	X, Y []float64
}

// Axis describes a scale.
type Axis struct {
	Label string
	Log   bool
	// Nines shows 1-x on a logarithmic scale, so that 0.9, 0.99 and 0.999 are
	// equally far apart; only for x.
	Nines bool
}

// Group is a named set of bars.
type Group struct {
	Name string
	V    []float64
}

// Strip is one named band of a Strips chart: for every time step, one value for
// each of the chart's kinds, stacked.
type Strip struct {
	Name string
	V    [][]float64 // by kind, then by step
}

// own is skep's colour in every picture, grey that of what nobody can use.
const own, grey = "#d9780f", "#8a8a8a"

// Colours of the others, which can be told apart on white and on near-black.
var colours = []string{"#2b7bba", "#3a9a4b", "#a05fb4", "#c8453b", "#17a2a8", "#b8a01c", "#8a5a44", "#e377c2"}

// assign gives every name its colour.
func assign(names []string) []string {
	out := make([]string, len(names))
	next := 0
	for i, n := range names {
		switch n {
		case "skep":
			out[i] = own
		case "ideal queue":
			out[i] = grey
		default:
			out[i] = colours[next%len(colours)]
			next++
		}
	}
	return out
}

const font = 12

type canvas struct {
	bytes.Buffer
	w, h float64
}

func newCanvas(w, h float64, title string) *canvas {
	c := &canvas{w: w, h: h}
	fmt.Fprintf(c, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %s %s" role="img" font-family="sans-serif" font-size="%d">`+"\n", num(w), num(h), font)
	fmt.Fprintf(c, "<title>%s</title>\n", html.EscapeString(title))
	c.WriteString("<style>.bg{fill:#fff}.fg{fill:#222}.ax{stroke:#999}.gr{stroke:#e4e4e4}" +
		"@media(prefers-color-scheme:dark){.bg{fill:#12161c}.fg{fill:#ddd}.ax{stroke:#777}.gr{stroke:#2c3138}}</style>\n")
	fmt.Fprintf(c, `<rect class="bg" width="%s" height="%s"/>`+"\n", num(w), num(h))
	c.text(w/2, 18, "middle", title)
	return c
}

func (c *canvas) text(x, y float64, anchor, s string) {
	fmt.Fprintf(c, `<text class="fg" x="%s" y="%s" text-anchor="%s">%s</text>`+"\n", num(x), num(y), anchor, html.EscapeString(s))
}

func (c *canvas) line(class string, x1, y1, x2, y2 float64) {
	fmt.Fprintf(c, `<path class="%s" d="M%s %sL%s %s"/>`+"\n", class, num(x1), num(y1), num(x2), num(y2))
}

func (c *canvas) rect(x, y, w, h float64, fill string) {
	fmt.Fprintf(c, `<rect x="%s" y="%s" width="%s" height="%s" fill="%s"/>`+"\n", num(x), num(y), num(w), num(h), fill)
}

func (c *canvas) done() []byte {
	c.WriteString("</svg>\n")
	return c.Bytes()
}

func num(x float64) string {
	if math.IsNaN(x) || math.IsInf(x, 0) {
		x = 0
	}
	return strconv.FormatFloat(math.Round(x*10)/10, 'f', -1, 64)
}

func label(x float64) string { return strconv.FormatFloat(x, 'g', 4, 64) }

func finite(x float64) bool { return !math.IsNaN(x) && !math.IsInf(x, 0) }

// scale maps values to positions.
type scale struct {
	axis           Axis
	lo, hi, p0, p1 float64
}

func (a Axis) transform(x float64) float64 {
	switch {
	case a.Nines:
		return -math.Log10(max(1-x, 1e-4))
	case a.Log:
		return math.Log10(max(x, 1e-3))
	}
	return x
}

func (s scale) at(x float64) float64 {
	if s.hi == s.lo {
		return s.p0
	}
	return s.p0 + (s.axis.transform(x)-s.lo)/(s.hi-s.lo)*(s.p1-s.p0)
}

func newScale(a Axis, values []float64, p0, p1 float64) scale {
	lo, hi := math.Inf(1), math.Inf(-1)
	for _, v := range values {
		if finite(v) {
			lo, hi = min(lo, a.transform(v)), max(hi, a.transform(v))
		}
	}
	if lo > hi {
		lo, hi = 0, 1
	}
	switch {
	case a.Log:
		lo, hi = math.Floor(lo), math.Ceil(hi)
		if lo == hi {
			hi++
		}
	case !a.Nines:
		lo = min(lo, 0)
		if hi == lo {
			hi = lo + 1
		}
	}
	return scale{a, lo, hi, p0, p1}
}

// ticks returns round values in the scale's range.
func (s scale) ticks() []float64 {
	var out []float64
	switch {
	case s.axis.Nines:
		for _, q := range []float64{0, 0.5, 0.9, 0.95, 0.99, 0.995, 0.999, 0.9999} {
			if t := s.axis.transform(q); t >= s.lo-1e-9 && t <= s.hi+1e-9 {
				out = append(out, q)
			}
		}
	case s.axis.Log:
		for e := s.lo; e <= s.hi; e++ {
			out = append(out, math.Pow(10, e))
		}
	default:
		step := math.Pow(10, math.Floor(math.Log10((s.hi-s.lo)/2)))
		for _, m := range []float64{1, 2, 5, 10} {
			if (s.hi-s.lo)/(step*m) <= 6 {
				step *= m
				break
			}
		}
		for t := math.Ceil(s.lo/step) * step; t <= s.hi+step*1e-9; t += step {
			out = append(out, math.Round(t/step)*step)
		}
	}
	return out
}

func percent(q float64) string { return strconv.FormatFloat(math.Round(q*1e6)/1e4, 'f', -1, 64) + " %" }

// Lines draws functions. Points that are not finite are left out.
func Lines(title string, x, y Axis, lines []Line) []byte {
	const w, h, left, top = 760.0, 380.0, 62.0, 34.0
	const right, bottom = 560.0, 330.0
	c := newCanvas(w, h, title)
	var xs, ys []float64
	for _, l := range lines {
		xs, ys = append(xs, l.X...), append(ys, l.Y...)
	}
	sx, sy := newScale(x, xs, left, right), newScale(y, ys, bottom, top)
	for _, t := range sx.ticks() {
		c.line("gr", sx.at(t), top, sx.at(t), bottom)
		text := label(t)
		if x.Nines {
			text = percent(t)
		}
		c.text(sx.at(t), bottom+16, "middle", text)
	}
	for _, t := range sy.ticks() {
		c.line("gr", left, sy.at(t), right, sy.at(t))
		c.text(left-6, sy.at(t)+4, "end", label(t))
	}
	c.line("ax", left, bottom, right, bottom)
	c.line("ax", left, top, left, bottom)
	c.text((left+right)/2, h-12, "middle", x.Label)
	c.text(left-6, top-6, "end", y.Label)
	names := make([]string, len(lines))
	for i, l := range lines {
		names[i] = l.Name
	}
	palette := assign(names)
	for i, l := range lines {
		colour := palette[i]
		d := ""
		for k := range min(len(l.X), len(l.Y)) {
			if !finite(l.X[k]) || !finite(l.Y[k]) {
				continue
			}
			op := "L"
			if d == "" {
				op = "M"
			}
			d += op + num(sx.at(l.X[k])) + " " + num(sy.at(l.Y[k]))
		}
		if d != "" {
			fmt.Fprintf(c, `<path d="%s" fill="none" stroke="%s" stroke-width="2"/>`+"\n", d, colour)
		}
		yy := top + 10 + float64(i)*18
		c.rect(right+16, yy-9, 14, 10, colour)
		c.text(right+36, yy, "start", l.Name)
	}
	return c.done()
}

// Bars draws groups of bars side by side, with the group's name below.
func Bars(title, unit string, groups []Group) []byte {
	const h, top, bottom, left = 300.0, 44.0, 250.0, 44.0
	const bar, gap = 18.0, 28.0
	n := 0
	var all []float64
	for _, g := range groups {
		n = max(n, len(g.V))
		all = append(all, g.V...)
	}
	pitch := max(float64(n)*bar+gap, 96)
	c := newCanvas(left+pitch*float64(max(len(groups), 1))+10, h, title)
	sy := newScale(Axis{}, all, bottom, top)
	for _, t := range sy.ticks() {
		c.line("gr", left, sy.at(t), c.w-10, sy.at(t))
		c.text(left-6, sy.at(t)+4, "end", label(t))
	}
	c.text(6, 36, "start", unit)
	for i, g := range groups {
		x := left + pitch*float64(i) + (pitch-float64(len(g.V))*bar)/2
		for k, v := range g.V {
			if finite(v) {
				c.rect(x+float64(k)*bar+1, sy.at(v), bar-2, bottom-sy.at(v), own)
			}
		}
		for k, word := range wrap(g.Name, 13) {
			c.text(left+pitch*(float64(i)+0.5), bottom+16+float64(k)*14, "middle", word)
		}
	}
	c.line("ax", left, bottom, c.w-10, bottom)
	return c.done()
}

// wrap breaks s at spaces into lines of about width letters.
func wrap(s string, width int) []string {
	var out []string
	line := ""
	for word := range bytes.FieldsSeq([]byte(s)) {
		switch {
		case line == "":
			line = string(word)
		case len(line)+1+len(word) <= width:
			line += " " + string(word)
		default:
			out = append(out, line)
			line = string(word)
		}
	}
	return append(out, line)
}

// Strips draws one band per subject with stacked bars over time, all to one
// scale; at time 0 there is a line through all bands.
func Strips(title, unit string, kinds []string, from, step float64, strips []Strip) []byte {
	const w, left, right, band, top = 760.0, 150.0, 740.0, 46.0, 52.0
	red := []string{"#c8453b", "#e0a030", "#2b7bba"}
	steps, most := 0, 0.0
	for _, s := range strips {
		for k := range s.V {
			steps = max(steps, len(s.V[k]))
		}
	}
	sum := func(s Strip, i int) float64 {
		t := 0.0
		for k := range s.V {
			if i < len(s.V[k]) && finite(s.V[k][i]) {
				t += s.V[k][i]
			}
		}
		return t
	}
	for _, s := range strips {
		for i := range steps {
			most = max(most, sum(s, i))
		}
	}
	most = max(most, 1)
	bottom := top + band*float64(len(strips))
	c := newCanvas(w, bottom+44, title)
	sx := scale{Axis{}, from, from + step*float64(max(steps, 1)), left, right}
	x := left
	for k, name := range kinds {
		c.rect(x, 28, 12, 10, red[k%len(red)])
		c.text(x+18, 38, "start", name)
		x += 30 + 8*float64(len(name))
	}
	c.text(right, 38, "end", fmt.Sprintf("full height: %s %s", label(most), unit))
	for i, s := range strips {
		base := top + band*float64(i+1)
		c.line("ax", left, base, right, base)
		c.text(left-8, base-12, "end", s.Name)
		for t := range steps {
			y := base
			for k := range s.V {
				if t >= len(s.V[k]) || !finite(s.V[k][t]) || s.V[k][t] <= 0 {
					continue
				}
				hgt := s.V[k][t] / most * (band - 6)
				y -= hgt
				c.rect(sx.at(from+step*float64(t)), y, max((right-left)/float64(steps)-0.5, 0.5), hgt, red[k%len(red)])
			}
		}
	}
	for _, t := range sx.ticks() {
		c.text(sx.at(t), bottom+16, "middle", label(t))
	}
	c.text((left+right)/2, bottom+34, "middle", "seconds")
	if from < 0 {
		c.line("ax", sx.at(0), top, sx.at(0), bottom)
	}
	return c.done()
}
