package config

import "testing"

// The examples are of one cloud: the controller's key is one that the Map-Server takes for a controller's.
func TestExamplesFitTogether(t *testing.T) {
	parse := func(role string) any {
		text, err := Example(role)
		if err != nil {
			t.Fatal(err)
		}
		c, err := Parse(role+".yaml", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	server, c := parse("mapserver").(*MapServer), parse("controller").(*Controller)
	for _, s := range c.Core.MapServers {
		found := false
		for _, k := range server.Server.Sites[0].ControllerKeys {
			found = found || k == s.Key
		}
		if !found {
			t.Errorf("the Map-Server does not know the controller's key: %+v of %+v", s.Key, server.Server.Sites[0].ControllerKeys)
		}
	}
}
