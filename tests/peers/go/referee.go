package main

import (
	"bufio"
	"fmt"
	"net"
	"strings"
	"time"
)

// held holds what is held for its time, and has the referee look on, if there is one.
func (o *options) held(key string) error {
	if o.referee == "" {
		time.Sleep(o.hold)
		return nil
	}
	referee, err := net.Dial("tcp", o.referee)
	if err != nil {
		return err
	}
	defer referee.Close()
	answers := bufio.NewReader(referee)
	ask := func(question string) error {
		fmt.Fprintln(referee, question)
		answer, err := answers.ReadString('\n')
		if err == nil && strings.TrimSpace(answer) != "ok" {
			err = fmt.Errorf("the referee says to %q: %s", question, answer)
		}
		return err
	}
	if err := ask("in " + o.who + " " + key); err != nil {
		return err
	}
	time.Sleep(o.hold)
	return ask("out")
}
