package router

import (
	"bytes"
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
	"unicode/utf8"
)

// Router turns statement texts into Plans. Any number of goroutines may use it.
//
// What it remembers depends on nothing but the text: not on who asks, in which
// database, or with which search_path.
type Router struct {
	// Set at construction.
	maxParse int
	cache    *cache
	shapers  sync.Pool

	// Atomic.
	misses, uncached, panics atomic.Uint64
}

// The defaults of Options.
const (
	DefaultMaxShapes     = 10_000
	DefaultMaxShapeBytes = 16 << 20
	DefaultMaxParse      = 1 << 20
)

// New returns an empty Router.
func New(opt Options) *Router {
	if opt.MaxShapes <= 0 {
		opt.MaxShapes = DefaultMaxShapes
	}
	if opt.MaxShapeBytes <= 0 {
		opt.MaxShapeBytes = DefaultMaxShapeBytes
	}
	if opt.MaxParse <= 0 {
		opt.MaxParse = DefaultMaxParse
	}
	return &Router{
		maxParse: opt.MaxParse,
		cache:    newCache(opt.MaxShapes, int64(opt.MaxShapeBytes)),
		shapers:  sync.Pool{New: func() any { return new(shaper) }},
	}
}

// Plan returns what is known about one statement text. sql must be the whole
// text, and is not kept. A shape that was seen before costs well under a
// microsecond and no allocation; else the text is parsed. It never fails: what
// cannot be understood is for the primary, with effects that assume the worst.
func (r *Router) Plan(sql []byte) (p *Plan) {
	defer func() {
		if recover() != nil {
			r.panics.Add(1)
			p = primary(reasonBroken, "", EffectWrite|EffectOther)
		}
	}()
	if len(sql) > r.maxParse {
		r.uncached.Add(1)
		return hinted(&Plan{Reason: reasonTooLarge, Effects: guessEffects(sql)}, leadingHint(sql))
	}
	if bytes.IndexByte(sql, 0) >= 0 {
		r.uncached.Add(1)
		return primary(reasonUnreadable, "", EffectWrite|EffectOther)
	}
	if !utf8.Valid(sql) {
		r.uncached.Add(1)
		return hinted(&Plan{Reason: reasonEncoding, Effects: guessEffects(sql)}, leadingHint(sql))
	}

	s := r.shapers.Get().(*shaper)
	result := s.shape(sql)
	if result == shaped {
		sum := sumOf(s.out)
		if p = r.cache.find(sum, s.out); p == nil {
			var kept bool
			p, kept = r.cache.add(sum, s.out, hinted(analyse(s.out), s.hint))
			if kept {
				r.misses.Add(1)
			} else {
				r.uncached.Add(1)
			}
		}
	} else {
		r.uncached.Add(1)
		p = unshaped(sql, result, s.odd)
		p = hinted(p, s.hint)
	}
	s.release()
	r.shapers.Put(s)
	return p
}

// unshaped is the plan of a text that has no shape.
func unshaped(sql []byte, result shaping, odd oddity) *Plan {
	switch result {
	case unreadable:
		return primary(reasonUnreadable, "", EffectWrite|EffectOther)
	case ambiguous:
		return primary(reasonBackslash, "", EffectWrite|EffectOther)
	}
	p := analyse(sql)
	if odd&oddBackslash != 0 {
		p.Vars = nil // what the string says depends on the setting
		if p.Proxy != nil {
			p.Class, p.Reason, p.Proxy = ClassPrimary, reasonBackslash, nil
		}
	}
	return p
}

// hinted puts the hint on a plan that nobody else has yet.
func hinted(p *Plan, h hint) *Plan {
	switch {
	case h.bad:
		p.Class, p.Reason, p.Proxy, p.Bad, p.open = ClassPrimary, reasonBadHint, nil, badHint, nil
	case h.found:
		p.Target, p.Explain = string(h.word()), h.explain
	}
	return p
}

var badHint = &Refusal{"22023", "hint not understood: want /* pgproxy: target=primary */, replica or a group of servers, " +
	"/* pgproxy: explain */, or both with a comma"}

// TooLarge is the plan of a statement that is too long to be held whole, and so
// cannot be given to Plan: the primary, and whatever a statement can do.
func TooLarge() *Plan { return tooLarge }

var tooLarge = &Plan{Reason: reasonTooLarge, Effects: EffectWrite | EffectOther | EffectMulti}

// Shapes copies what is remembered, the most used shape first.
func (r *Router) Shapes() []ShapeStat {
	shapes := r.cache.list()
	slices.SortFunc(shapes, func(a, b ShapeStat) int {
		return cmp.Or(cmp.Compare(b.Hits, a.Hits), cmp.Compare(a.Shape, b.Shape))
	})
	return shapes
}

// Shape returns a text's shape for people, without a literal of it; "" if it has
// none.
func (r *Router) Shape(sql []byte) string {
	if len(sql) > r.maxParse || bytes.IndexByte(sql, 0) >= 0 || !utf8.Valid(sql) {
		return ""
	}
	var s shaper
	if s.shape(sql) != shaped {
		return ""
	}
	return display(string(s.out))
}

// Stats returns the counters.
func (r *Router) Stats() Stats {
	s := Stats{Misses: r.misses.Load(), Uncached: r.uncached.Load(), Panics: r.panics.Load()}
	r.cache.stats(&s)
	return s
}
