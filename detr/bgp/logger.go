package bgp

import (
	"context"
	"log/slog"
	"strings"

	"github.com/osrg/gobgp/v3/pkg/log"
)

// logger gives GoBGP's log lines to slog. GoBGP is chatty: what it calls informational is debugging to
// us, except that sessions come and go. Its Fatal and Panic do not end the process: they mark internal
// errors of one session, after which GoBGP goes on.
type logger struct{ log *slog.Logger }

var _ log.Logger = logger{}

func (l logger) say(level slog.Level, msg string, fields log.Fields) {
	ctx := context.Background()
	if !l.log.Enabled(ctx, level) {
		return
	}
	attrs := make([]slog.Attr, 0, 4)
	if peer, ok := fields["Key"].(string); ok {
		attrs = append(attrs, slog.String("peer", peer))
	}
	for _, f := range gobgpFields {
		if v, ok := fields[f.theirs]; ok {
			attrs = append(attrs, slog.Any(f.ours, v))
		}
	}
	l.log.LogAttrs(ctx, level, "bgp: "+msg, attrs...)
}

// gobgpFields are the fields of GoBGP's lines that say something, under our names.
var gobgpFields = []struct{ theirs, ours string }{
	{"Reason", "reason"}, {"State", "state"}, {"Error", "err"}, {"Err", "err"}, {"Code", "code"}, {"Subcode", "subcode"},
}

func (l logger) Panic(msg string, fields log.Fields) { l.say(slog.LevelError, msg, fields) }
func (l logger) Fatal(msg string, fields log.Fields) { l.say(slog.LevelError, msg, fields) }
func (l logger) Error(msg string, fields log.Fields) { l.say(slog.LevelError, msg, fields) }
func (l logger) Debug(string, log.Fields)            {}
func (l logger) SetLevel(log.LogLevel)               {}

func (l logger) Warn(msg string, fields log.Fields) {
	level := slog.LevelWarn
	if strings.HasPrefix(msg, "No matching path for withdraw") {
		level = slog.LevelDebug // one for each path that our import policy refuses
	}
	l.say(level, msg, fields)
}

func (l logger) Info(msg string, fields log.Fields) {
	level := slog.LevelDebug
	if msg == "Peer Up" || msg == "Peer Down" {
		level = slog.LevelInfo
	}
	l.say(level, msg, fields)
}

// GetLevel keeps GoBGP from building debugging lines, which cost time on every update.
func (l logger) GetLevel() log.LogLevel { return log.InfoLevel }
