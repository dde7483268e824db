package rotation

// The lean model is for walks with more agents than one. It says of a member what
// it may hold, where the exact model says what it holds:
//
//   - What is in flight and what is stored are some of since, and any of them.
//     That a certificate is written is that since becomes less: any part of it
//     that still has what Vault issues now, of which the true one is one.
//   - What is loaded is any of what is stored, for it may be reloaded now. Only
//     what no reload brings any more, because it is loaded and no longer in since
//     or in the bundle, is said: chain and anchor. It stays until a reload, or for
//     ever. A first start is a reload.
//   - Of who is quarantined nothing is said but by which intermediate its role
//     signs. When it returns it is whatever the gate lets in.
//
// A handshake has to succeed with everything that may be held, as PROCEDURES.md
// wants it of H. So the lean model comes to all that the exact one comes to, and
// to more; if no handshake fails in it, none does. That it comes to all is checked
// at every step of the exact one: leanCovers. The gates of Standard see
// no difference, for what is in flight, stored and loaded is alike to them; a gate
// that tells them apart is a matter for the exact model.

// leaned is the lean model's truth of a member.
func leaned(t truth) truth {
	switch {
	case t.out:
		return nobody
	case t.quarantined:
		return truth{quarantined: true, newIssuer: t.newIssuer}
	}
	t.flying, t.sinceFlying, t.stored = noMode, 0, noMode
	if t.since.Has(t.chain) {
		t.chain = noMode
	}
	if t.ownTrust && t.since.Anchors()&Trusting(t.anchor) != 0 || !t.ownTrust && t.anchor == t.bundle {
		t.anchor = 0
	}
	return t
}

func leanPresents(t truth) Modes { return t.since | only(t.chain) }

func leanTrusts(t truth) Stores {
	var stores Stores
	if t.anchor != 0 {
		stores = Trusting(t.anchor)
	}
	if t.ownTrust {
		return stores | t.since.Anchors()
	}
	return stores | Trusting(t.bundle)
}

// leanNature is what happens to a member by itself.
func (m model) leanNature(t truth, mode Mode) changes {
	if t.quarantined {
		return nil
	}
	var out changes
	for left := (t.since - 1) & t.since; left != 0; left = (left - 1) & t.since {
		if left&In(m.issues(t, mode)) == 0 {
			continue
		}
		// What is loaded may be of what is written over.
		chains, anchors := []Mode{t.chain}, []Roots{t.anchor}
		for gone := range Mode(modes) {
			switch anchor := gone.Anchor(); {
			case !(t.since &^ left).Has(gone):
				continue
			case t.chain == noMode:
				chains = append(chains, gone)
				fallthrough
			default:
				if t.ownTrust && t.anchor == 0 && left.Anchors()&Trusting(anchor) == 0 {
					anchors = append(anchors, anchor)
				}
			}
		}
		for _, chain := range chains {
			for _, anchor := range anchors {
				to := t
				to.since, to.chain, to.anchor = left, chain, anchor
				out.add("has a certificate written, since whose issuance Vault was "+left.String(), t, to)
			}
		}
	}
	// A restart is both.
	to := t
	to.chain = noMode
	out.add("reloads its chain", t, to)
	to = t
	to.anchor = 0
	out.add("reloads its trust", t, to)
	return out
}

// leanReturns are those as which one may ask to count again, if its role signs
// with the new intermediate: with the mode alone that Vault is in, without which
// the gate lets nobody in, and with any trust.
func (m model) leanReturns(mode Mode) []truth {
	var out []truth
	for anchor := range m.anchors() + 1 {
		if anchor&^m.anchors() != 0 {
			continue
		}
		t := truth{newIssuer: true, since: In(mode), flying: noMode, stored: noMode, chain: noMode, anchor: anchor}
		for _, t.ownTrust = range m.kinds {
			for t.bundle = range m.anchors() + 1 {
				if t.bundle&^m.anchors() == 0 && t.ownTrust == (t.bundle == 0) && t == leaned(t) {
					out = append(out, t)
				}
			}
		}
	}
	return out
}
