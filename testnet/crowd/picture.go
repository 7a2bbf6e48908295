package crowd

import (
	"bytes"
	"hash/crc32"
	"image"
	"image/color"
	"image/draw"
	"image/jpeg"
	"math"
	"math/rand/v2"
	"time"
)

// Size of the picture in pixels.
const (
	width  = 320
	height = 240
)

// quality makes pictures of about 12,000 bytes.
const quality = 70

var (
	grass = color.RGBA{40, 120, 50, 255}
	soil  = color.RGBA{170, 110, 60, 255}
	white = color.RGBA{245, 245, 240, 255}
	board = color.RGBA{15, 30, 25, 255}
)

// drawScene is the game as a site shows it at a time: the field, a board in the site's colour with the time on it, and a
// ball on its way.
func drawScene(name string, now time.Time) []byte {
	m := image.NewRGBA(image.Rect(0, 0, width, height))
	at := uint64(now.Unix())
	blades := rand.New(rand.NewPCG(at, 0))
	for y := range height {
		for x := range width {
			c := grass
			if d := math.Abs(float64(x)-width/2)/1.6 + math.Abs(float64(y)-170); d < 60 {
				c = soil
			}
			n := uint8(blades.Uint32() % 24)
			c.R, c.G, c.B = c.R+n, c.G+n, c.B+n
			m.SetRGBA(x, y, c)
		}
	}
	hue := crc32.ChecksumIEEE([]byte(name))
	trim := color.RGBA{128 + uint8(hue)/2, 128 + uint8(hue>>8)/2, 128 + uint8(hue>>16)/2, 255}
	fill(m, image.Rect(60, 10, 260, 74), trim)
	fill(m, image.Rect(66, 16, 254, 68), board)
	h, minute, s := now.UTC().Clock()
	for i, d := range []int{h / 10, h % 10, minute / 10, minute % 10, s / 10, s % 10} {
		digit(m, 76+i*28+i/2*6, 24, d)
	}
	angle := float64(at%20) / 20 * math.Pi
	x, y := width/2-int(130*math.Cos(angle)), 190-int(90*math.Sin(angle))
	for dy := -5; dy <= 5; dy++ {
		for dx := -5; dx <= 5; dx++ {
			if dx*dx+dy*dy <= 25 {
				m.Set(x+dx, y+dy, white)
			}
		}
	}
	var b bytes.Buffer
	_ = jpeg.Encode(&b, m, &jpeg.Options{Quality: quality}) // into memory: it cannot fail
	return b.Bytes()
}

func fill(m *image.RGBA, r image.Rectangle, c color.Color) {
	draw.Draw(m, r, image.NewUniform(c), image.Point{}, draw.Src)
}

// segments are the bars of each digit: top, the upper two, middle, the lower two, bottom; the first is bit 0.
var segments = [10]uint8{0b1110111, 0b0100100, 0b1011101, 0b1101101, 0b0101110, 0b1101011, 0b1111011, 0b0100101, 0b1111111, 0b1101111}

// digit draws a figure of seven bars with its corner at x, y.
func digit(m *image.RGBA, x, y, d int) {
	for i, r := range []image.Rectangle{{image.Pt(3, 0), image.Pt(17, 4)}, {image.Pt(0, 2), image.Pt(4, 17)}, {image.Pt(16, 2), image.Pt(20, 17)},
		{image.Pt(3, 16), image.Pt(17, 20)}, {image.Pt(0, 18), image.Pt(4, 34)}, {image.Pt(16, 18), image.Pt(20, 34)}, {image.Pt(3, 32), image.Pt(17, 36)}} {
		if segments[d]>>i&1 == 1 {
			fill(m, r.Add(image.Pt(x, y)), color.RGBA{255, 210, 60, 255})
		}
	}
}
