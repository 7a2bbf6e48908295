package main

import (
	"strings"
	"testing"
)

func TestScenarioOptions(t *testing.T) {
	for _, test := range []struct {
		o    scenarioOptions
		want string // in the error; "" = none
	}{
		{scenarioOptions{vms: 200, parallel: 8, link: 20e6}, ""},
		{scenarioOptions{name: "drain", vms: 1, parallel: 1, link: 20e6}, ""},
		{scenarioOptions{name: "satellite", vms: 200, parallel: 8, link: 1000}, "--link wants at least 1000000"},
		{scenarioOptions{name: "tour", vms: 200, parallel: 8, link: 20e6}, `no scenario "tour": there are drain and satellite`},
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
