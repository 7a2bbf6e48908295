package lisp

import "testing"

func TestTypeString(t *testing.T) {
	for typ, want := range map[Type]string{
		TypeMapRequest: "map-request", TypeMapNotifyAck: "map-notify-ack", TypeMapReferral: "map-referral", TypeECM: "ecm",
		0: "type-0", 7: "type-7", 15: "type-15", 99: "type-99",
	} {
		if got := typ.String(); got != want {
			t.Errorf("type %d is %q, want %q", uint8(typ), got, want)
		}
	}
	for name, m := range samples() {
		if got := m.Type().String(); len(name) < len(got) && name[:3] != "ecm" || name[:3] != got[:3] {
			t.Errorf("%s is of type %s", name, got)
		}
	}
}
