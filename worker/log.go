package main

import (
	"fmt"
	"os"

	"go.temporal.io/sdk/log"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/term"
)

// newLogger writes to standard error: JSON for collectors, plain lines if that
// is a terminal.
func newLogger(level string) (*zap.Logger, error) {
	parsed, err := zapcore.ParseLevel(level)
	if err != nil {
		return nil, configurationError{fmt.Errorf("RELAYPKI_LOG_LEVEL: %w", err)}
	}
	config := zap.NewProductionConfig()
	config.Level = zap.NewAtomicLevelAt(parsed)
	config.EncoderConfig.EncodeTime = zapcore.ISO8601TimeEncoder
	config.EncoderConfig.EncodeDuration = zapcore.StringDurationEncoder
	config.Sampling = nil // a worker says little, and what it says must not be lost
	config.DisableStacktrace = true
	if term.IsTerminal(int(os.Stderr.Fd())) {
		config.Encoding = "console"
	}
	return config.Build()
}

// temporalLogger gives the SDK a zap logger. It keeps the SDK's fields and the
// true caller.
type temporalLogger struct{ zap *zap.Logger }

var (
	_ log.WithLogger      = temporalLogger{}
	_ log.WithSkipCallers = temporalLogger{}
)

func (l temporalLogger) Debug(msg string, keyvals ...any) { l.write(zap.DebugLevel, msg, keyvals) }
func (l temporalLogger) Info(msg string, keyvals ...any)  { l.write(zap.InfoLevel, msg, keyvals) }
func (l temporalLogger) Warn(msg string, keyvals ...any)  { l.write(zap.WarnLevel, msg, keyvals) }
func (l temporalLogger) Error(msg string, keyvals ...any) { l.write(zap.ErrorLevel, msg, keyvals) }

func (l temporalLogger) With(keyvals ...any) log.Logger {
	return temporalLogger{l.zap.With(fields(keyvals)...)}
}

func (l temporalLogger) WithCallerSkip(depth int) log.Logger {
	return temporalLogger{l.zap.WithOptions(zap.AddCallerSkip(depth))}
}

func (l temporalLogger) write(level zapcore.Level, msg string, keyvals []any) {
	// 2: this method and the one that names the level.
	if entry := l.zap.WithOptions(zap.AddCallerSkip(2)).Check(level, msg); entry != nil {
		entry.Write(fields(keyvals)...)
	}
}

func fields(keyvals []any) []zap.Field {
	out := make([]zap.Field, 0, (len(keyvals)+1)/2)
	for i := 0; i < len(keyvals); i += 2 {
		if i+1 == len(keyvals) {
			return append(out, zap.Any("extra", keyvals[i]))
		}
		key := fmt.Sprint(keyvals[i])
		if err, ok := keyvals[i+1].(error); ok {
			out = append(out, zap.NamedError(key, err))
			continue
		}
		out = append(out, zap.Any(key, keyvals[i+1]))
	}
	return out
}
