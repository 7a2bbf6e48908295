package main

import (
	"strings"
	"testing"
	"time"
)

func TestScenarioOptions(t *testing.T) {
	for _, test := range []struct {
		o    scenarioOptions
		want string // in the error; "" = none
	}{
		{scenarioOptions{vms: 200, parallel: 8, link: 20e6, viewers: 2, duration: time.Minute}, ""},
		{scenarioOptions{name: "drain", vms: 1, parallel: 1, link: 20e6, viewers: 2, duration: time.Minute}, ""},
		{scenarioOptions{name: "koshien", vms: 1, parallel: 1, link: 20e6, viewers: 1, duration: time.Minute}, "--viewers wants 2 to 50000"},
		{scenarioOptions{name: "koshien", vms: 1, parallel: 1, link: 20e6, viewers: 2, duration: time.Second}, "--duration at least 8s"},
		{scenarioOptions{name: "satellite", vms: 200, parallel: 8, link: 1000}, "--link wants at least 1000000"},
		{scenarioOptions{name: "tour", vms: 200, parallel: 8, link: 20e6}, `no scenario "tour": there are drain, koshien and satellite`},
		{scenarioOptions{name: "drain", vms: 0, parallel: 8, link: 20e6}, "--vms wants 1 to 220"},
		{scenarioOptions{name: "drain", vms: 221, parallel: 8, link: 20e6}, "--vms wants 1 to 220"},
		{scenarioOptions{name: "drain", vms: 200, link: 20e6}, "--parallel at least 1"},
	} {
		err := test.o.check()
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%+v: %v, want %q", test.o, err, test.want)
		}
	}
}
