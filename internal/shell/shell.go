// Package shell writes commands as people type them into a shell: quoted where
// that is needed, with longer texts on standard input.
package shell

import (
	"regexp"
	"strings"
)

// plain is a word that no shell gives a meaning.
var plain = regexp.MustCompile(`^[A-Za-z0-9_@%+=:,./-]+$`)

// Quote is the word as one argument, whatever it holds.
func Quote(word string) string {
	if plain.MatchString(word) {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

// Join is a command line of these arguments.
func Join(args ...string) string {
	quoted := make([]string, len(args))
	for i, a := range args {
		quoted[i] = Quote(a)
	}
	return strings.Join(quoted, " ")
}

// Input is the command line with text, as it is, on its standard input.
func Input(command, text string) string {
	end := delimiter(text)
	return command + " <<'" + end + "'\n" + ended(text) + end
}

// Expanded is like Input, with the given variables in the text replaced by
// their values: each "$NAME" where NAME is one of them. Nothing else in it has
// a meaning for the shell.
func Expanded(command, text string, variables ...string) string {
	if len(variables) == 0 {
		return Input(command, text)
	}
	escaped := strings.NewReplacer(`\`, `\\`, "`", "\\`", "$", `\$`).Replace(text)
	for _, v := range variables {
		escaped = regexp.MustCompile(`\\\$`+v+`\b`).ReplaceAllLiteralString(escaped, "${"+v+"}")
	}
	end := delimiter(text)
	return command + " <<" + end + "\n" + ended(escaped) + end
}

// delimiter is a line that the text does not have.
func delimiter(text string) string {
	end := "EOF"
	for strings.Contains("\n"+text+"\n", "\n"+end+"\n") {
		end += "_"
	}
	return end
}

func ended(text string) string {
	if text != "" && !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	return text
}
