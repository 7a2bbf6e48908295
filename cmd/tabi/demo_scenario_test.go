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
		{scenarioOptions{vms: 200, parallel: 8}, ""},
		{scenarioOptions{name: "drain", vms: 1, parallel: 1}, ""},
		{scenarioOptions{name: "tour", vms: 200, parallel: 8}, `no scenario "tour"`},
		{scenarioOptions{name: "drain", vms: 0, parallel: 8}, "--vms wants 1 to 220"},
		{scenarioOptions{name: "drain", vms: 221, parallel: 8}, "--vms wants 1 to 220"},
		{scenarioOptions{name: "drain", vms: 200}, "--parallel at least 1"},
	} {
		err := test.o.check()
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%+v: %v, want %q", test.o, err, test.want)
		}
	}
}
