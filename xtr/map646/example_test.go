package map646_test

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/tabi-lisp/tabi/xtr/fib"
	"github.com/tabi-lisp/tabi/xtr/map646"
	"github.com/tabi-lisp/tabi/xtr/map646/vectors"
)

func ExampleTranslator_Translate() {
	t, err := map646.New(map646.Config{Pool: netip.MustParsePrefix("2001:db8:64::/96")})
	if err != nil {
		fmt.Println(err)
		return
	}
	err = t.SetServices(context.Background(), fib.Service{
		Outside: netip.MustParsePrefix("198.51.100.10/32"),
		Inside:  netip.MustParsePrefix("2001:db8:e1d::a/128"),
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	packet := vectors.IP4{Src: "192.0.2.33", Dst: "198.51.100.10", Proto: vectors.UDP,
		Data: vectors.UDPDatagram("192.0.2.33", "198.51.100.10", 5)}.Bytes()
	r := t.Translate(packet, map646.Options{MTU: 1444})
	fmt.Println(r.Reason, "for", r.In)
	for _, p := range r.Packets {
		f, _ := map646.FlowOf(p)
		fmt.Println(f)
	}
	// Output:
	// translated-4to6 for 198.51.100.10/32
	// [2001:db8:64::c000:221]:12345 -> [2001:db8:e1d::a]:53, protocol 17
}

func ExampleEmbed() {
	fmt.Println(map646.Embed(netip.MustParsePrefix("2001:db8:122:344::/64"), netip.MustParseAddr("192.0.2.33")))
	// Output: 2001:db8:122:344:c0:2:2100:0
}
