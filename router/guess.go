package router

// guessEffects says what a text that is not parsed may do, by its words alone.
// It errs on the side of too much: EffectOther, wherever a word could be one
// that leaves something in the session.
func guessEffects(text []byte) Effect {
	l := lexer{src: text}
	var (
		effects Effect
		verb    string // of the current statement
		ended   bool   // a semicolon was seen
		room    [64]byte
	)
	for {
		t := l.next()
		switch t.kind {
		case tokEnd:
			return effects
		case tokBad:
			return effects | EffectWrite | EffectOther
		case tokQuoted:
			if inside := text[t.start+1 : t.end-1]; text[t.start] != '"' || leavesState(string(inside)) {
				effects |= EffectOther
			}
		case tokPunct:
			if text[t.start] == ';' {
				verb, ended = "", true
			}
			continue
		case tokWord:
			length := t.end - t.start
			if length > len(room) {
				length = 0
			}
			for i := range length {
				room[i] = lower[text[t.start+i]]
			}
			word := room[:length]
			if verb == "" {
				if ended {
					effects |= EffectMulti
				}
				verb = string(word)
				effects |= verbEffects(verb)
				continue
			}
			if leavesState(string(word)) || (verb == "select" || verb == "with" || verb == "create") && tempWord(string(word)) {
				effects |= EffectOther
			}
		}
		if verb == "" {
			// A statement that starts with neither a word nor, as in
			// (SELECT 1), a bracket: no SQL.
			verb = "?"
			effects |= EffectWrite | EffectOther
		}
	}
}

func verbEffects(verb string) Effect {
	switch verb {
	case "insert", "update", "delete", "merge", "select", "with", "values", "table", "truncate":
		return EffectWrite
	case "copy":
		return EffectWrite | EffectCopy
	case "create", "alter", "drop", "comment", "grant", "revoke":
		return EffectWrite | EffectDDL
	}
	return EffectWrite | EffectOther
}

// leavesState tells whether a word names a function that touches the session.
func leavesState(word string) bool {
	if isTempSchema(word) {
		return true
	}
	switch functionKinds[word] {
	case functionSetConfig, functionSessionLock, functionSessionState:
		return true
	}
	return false
}

func tempWord(word string) bool { return word == "temp" || word == "temporary" }
