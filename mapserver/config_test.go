package mapserver

import (
	"strings"
	"testing"
	"time"

	"github.com/tabi-lisp/tabi/lisp"
)

func TestConfigurationsThatAreRefused(t *testing.T) {
	for _, c := range []struct {
		change func(*Config)
		want   string
	}{
		{func(c *Config) { c.Sites = nil }, "no sites"},
		{func(c *Config) { c.Sites[1].Name = "" }, "a site has no name"},
		{func(c *Config) { c.Sites[1].Name = "cloud" }, `site "cloud": configured twice`},
		{func(c *Config) { c.Sites[1].Keys = nil }, `site "exact": no keys`},
		{func(c *Config) { c.Sites[1].Prefixes = nil }, `site "exact": no EID prefixes`},
		{func(c *Config) { c.Sites[1].Prefixes = []lisp.EID{{}} }, "is not valid"},
		{func(c *Config) { c.Sites[1].Prefixes = c.Sites[0].Prefixes[:1] }, `EID prefix 198.51.100.0/24 belongs to site "cloud"`},
		{func(c *Config) { c.Sites[0].ControllerKeys = c.Sites[0].Keys }, "key 1 is configured twice"},
		{func(c *Config) { c.Sites[0].Keys = []lisp.Key{{ID: 1, Secret: "x"}} }, "algorithm 0 is not"},
		{func(c *Config) { c.Sites[0].Keys = []lisp.Key{{ID: 1, Algorithm: lisp.AlgHMACSHA1_96}} }, "key 1: no secret"},
		{func(c *Config) { c.Subscribers = []Subscriber{{}} }, "subscriber 1: key 0"},
	} {
		cfg := cloud()
		c.change(&cfg)
		if _, err := newPolicy(cfg); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v, want %q", err, c.want)
		}
	}
	p, err := newPolicy(cloud())
	if err != nil {
		t.Fatal(err)
	}
	if p.RegistrationTimeout != 3*time.Minute || p.NegativeTTL != 15 || p.UnregisteredTTL != 1 || p.SubscriptionTTL != 15*time.Minute {
		t.Errorf("defaults %+v", p.Config)
	}
}
