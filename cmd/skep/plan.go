package main

import (
	"encoding/json"
	"fmt"

	"github.com/urfave/cli/v2"

	"skep/config"
	"skep/initd"
	"skep/sizing"
)

// plan shows what skep run would decide here and now.
func plan(c *cli.Context, in config.Input) error {
	o, err := config.Build(in)
	if err != nil {
		return err
	}
	limits, _ := initd.Limits()
	d := sizing.Plan(limits.Limits, o.Sizing, 0)
	d.Warnings = append(append(d.Warnings, o.Warnings...), limits.Warnings...)
	if c.Bool("json") {
		text, err := json.Marshal(d)
		if err != nil {
			return fmt.Errorf("cannot write the plan: %w", err)
		}
		_, err = fmt.Fprintf(c.App.Writer, "%s\n", text)
		return err
	}
	w := c.App.Writer
	fmt.Fprintln(w, d.Reason)
	if d.LimitBytes != nil {
		fmt.Fprintf(w, "memory  %d bytes, from %s\n", *d.LimitBytes, d.LimitSource)
	}
	if d.CPUs != nil {
		fmt.Fprintf(w, "cpus    %s, from %s\n", d.CPUs, d.CPUSource)
	}
	for _, warning := range d.Warnings {
		fmt.Fprintln(w, "warning:", warning)
	}
	return nil
}
