// Package lisplayer teaches gopacket LISP: the data header at UDP port 4341 (RFC 9300) and the control
// messages at port 4342 (RFC 9301). Importing it is enough for gopacket to decode both in any packet.
//
// It is for capture tools and tests. Daemons use package lisp: gopacket keeps its registrations in global
// variables and allocates for each layer.
package lisplayer

import (
	"fmt"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/tabi-lisp/tabi/lisp"
)

// The layer types, in gopacket's range for application-specific ones.
var (
	// LayerTypeData is the type of [Data].
	LayerTypeData = gopacket.RegisterLayerType(1341, gopacket.LayerTypeMetadata{
		Name: "LISP", Decoder: gopacket.DecodeFunc(decodeData)})
	// LayerTypeControl is the type of [Control].
	LayerTypeControl = gopacket.RegisterLayerType(1342, gopacket.LayerTypeMetadata{
		Name: "LISPControl", Decoder: gopacket.DecodeFunc(decodeControl)})
)

func init() {
	layers.RegisterUDPPortLayerType(lisp.DataPort, LayerTypeData)
	layers.RegisterUDPPortLayerType(lisp.ControlPort, LayerTypeControl)
}

// Data is the header before the inner packet.
type Data struct {
	layers.BaseLayer
	lisp.Header
}

var (
	_ gopacket.SerializableLayer = (*Data)(nil)
	_ gopacket.DecodingLayer     = (*Data)(nil)
)

// LayerType is LayerTypeData.
func (*Data) LayerType() gopacket.LayerType { return LayerTypeData }

// CanDecode is LayerTypeData.
func (*Data) CanDecode() gopacket.LayerClass { return LayerTypeData }

// NextLayerType is the inner packet's: IPv4 or IPv6, or only bytes if it is encrypted or neither.
func (d *Data) NextLayerType() gopacket.LayerType {
	if d.Encrypted != 0 {
		return gopacket.LayerTypePayload
	}
	return ipLayerType(d.Payload)
}

// DecodeFromBytes reads the header; the payload aliases b.
func (d *Data) DecodeFromBytes(b []byte, df gopacket.DecodeFeedback) error {
	h, err := lisp.DecodeHeader(b)
	if err != nil {
		df.SetTruncated()
		return err
	}
	*d = Data{BaseLayer: layers.BaseLayer{Contents: b[:lisp.HeaderLen], Payload: b[lisp.HeaderLen:]}, Header: h}
	return nil
}

// SerializeTo writes the header.
func (d *Data) SerializeTo(b gopacket.SerializeBuffer, _ gopacket.SerializeOptions) error {
	head, err := lisp.AppendHeader(nil, d.Header)
	if err != nil {
		return err
	}
	return prepend(b, head)
}

func decodeData(b []byte, p gopacket.PacketBuilder) error {
	d := &Data{}
	if err := d.DecodeFromBytes(b, p); err != nil {
		return err
	}
	p.AddLayer(d)
	return p.NextDecoder(d.NextLayerType())
}

// Control is a control message. That of an ECM has the inner packet as its payload: IP, UDP and another
// Control follow.
type Control struct {
	layers.BaseLayer
	Message lisp.Message
}

var (
	_ gopacket.SerializableLayer = (*Control)(nil)
	_ gopacket.DecodingLayer     = (*Control)(nil)
)

// LayerType is LayerTypeControl.
func (*Control) LayerType() gopacket.LayerType { return LayerTypeControl }

// CanDecode is LayerTypeControl.
func (*Control) CanDecode() gopacket.LayerClass { return LayerTypeControl }

// NextLayerType is the inner IP header's for an ECM, otherwise none.
func (c *Control) NextLayerType() gopacket.LayerType {
	if len(c.Payload) == 0 {
		return gopacket.LayerTypeZero
	}
	return ipLayerType(c.Payload)
}

// DecodeFromBytes reads the message.
func (c *Control) DecodeFromBytes(b []byte, _ gopacket.DecodeFeedback) error {
	m, err := lisp.Decode(b)
	if err != nil {
		return err
	}
	*c = Control{BaseLayer: layers.BaseLayer{Contents: b}, Message: m}
	if e, ok := m.(*lisp.ECM); ok {
		head := ecmHeaderLen + len(e.AuthData)
		c.Contents, c.Payload = b[:head], b[head:]
	}
	return nil
}

// ecmHeaderLen is the length of what precedes the authentication data and the inner packet of an ECM.
const ecmHeaderLen = 4

// SerializeTo writes the message whole, the inner packet of an ECM included.
func (c *Control) SerializeTo(b gopacket.SerializeBuffer, _ gopacket.SerializeOptions) error {
	raw, err := lisp.Append(nil, c.Message)
	if err != nil {
		return err
	}
	return prepend(b, raw)
}

func decodeControl(b []byte, p gopacket.PacketBuilder) error {
	c := &Control{}
	if err := c.DecodeFromBytes(b, p); err != nil {
		return err
	}
	p.AddLayer(c)
	if t := c.NextLayerType(); t != gopacket.LayerTypeZero {
		return p.NextDecoder(t)
	}
	return nil
}

// ipLayerType tells IPv4 and IPv6 apart by the version, as the header has no field for it.
func ipLayerType(b []byte) gopacket.LayerType {
	if len(b) > 0 {
		switch b[0] >> 4 {
		case 4:
			return layers.LayerTypeIPv4
		case 6:
			return layers.LayerTypeIPv6
		}
	}
	return gopacket.LayerTypePayload
}

func prepend(b gopacket.SerializeBuffer, head []byte) error {
	p, err := b.PrependBytes(len(head))
	if err != nil {
		return fmt.Errorf("lisplayer: %w", err)
	}
	copy(p, head)
	return nil
}
