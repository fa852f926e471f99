/*
 * The hand-over of a set of devices from a source to a destination, with journals, crashes and a wire that
 * breaks.  docs/model.md says what is modelled and what is not; docs/model/check verifies it with Spin 6.5.
 *
 * Each transition has a NAME, or is a MOVE of one device: S_ is the source's, D_ the destination's, W_ the
 * world's.  A record of a journal is durable once its transition is over; to tell the peer is another transition,
 * so that a crash can come between.  The names in #ifdef, from COMMIT_BEFORE_LOADED on, are mistakes on purpose:
 * the check requires that each is found by a property.
 */

/* How often each fault may happen in one run. */
#ifndef BREAKS
#define BREAKS 1
#endif
#ifndef CRASHES
#define CRASHES 2
#endif
#ifndef LOSSES    /* of a side's devices: by a crash of the engine that takes them along, or without one */
#define LOSSES 1
#endif
#ifndef FAILS     /* of one state change of one device */
#define FAILS 1
#endif
#ifndef FORGETS   /* of the destination's journal, at a restart */
#define FORGETS 0
#endif
#ifndef GONE      /* of a side, for good: its host is fenced, and a person decides at the other */
#define GONE 0
#endif

/* 0: check every property; n: only that one. */
#ifndef ONLY
#define ONLY 0
#endif
#define ON(n) (ONLY == 0 || ONLY == n)

mtype = {
  /* Records of the journals.  NOTHING: no record. */
  NOTHING, BEGUN, LOADED, COMMITTED, RUNNING, DISCARDED, RELEASED, TAKEN_BACK, BACK,
  /* Messages.  In the session: offer .. m_running.  discard and discarded stand for `failed` there. */
  none, offer, accept, data, m_loaded, commit, m_running, discard, discarded, take_over, lost, unknown,
  /* States of a device.  PRE_P2P: PRE_COPY_P2P.  P2P: RUNNING_P2P.  FREE: RUNNING and empty, after a reset or
   * before a load.  LOST: the same to the eye, but not the device that this session had. */
  RUN, PRE, PRE_P2P, P2P, STOP_COPY, STOP, RESUMING, ERROR, FREE, LOST,
  /* The wire. */
  DOWN, LIVE, RESOLVE
};

/* The source.  Durable: s_rec, s_ended (that the destination was heard to have discarded). */
mtype s_rec = NOTHING;
bit s_ended;
mtype s_dev[2] = RUN;      /* device 0 has pre-copy, device 1 has not; both have the P2P states */
bit s_up = 1;
bit s_live;                /* this process holds the session that it began */
bit s_switch;              /* it goes to stop-copy */
bit s_heard_loaded;
mtype s_doubt = none;      /* the destination's answer that leaves it to a person */

/* The destination.  Durable: d_rec. */
mtype d_rec = NOTHING;
mtype d_dev[2] = FREE;
bit d_up = 1;
bit d_live;
bit d_data;                /* all data and ends have arrived */
bit d_told;                /* that it discarded was said in the session */

/* The wire.  The session's messages are two streams.  What was said: out[0 .. sent-1]; of that, what is on
 * the present connection or was heard: wire; what was heard: got.  A break loses out[got .. wire-1] or part
 * of it; a session that is resumed sends again from got. */
mtype wire = DOWN;
bit met;
mtype s_out[4] = none; byte s_sent; byte s_wire; byte d_got;
mtype d_out[4] = none; byte d_sent; byte d_wire; byte s_got;
mtype r_ask = none;        /* resolve{run} (take_over) or discard, on a connection of its own */
bit r_heard;
mtype r_answer = none;

byte breaks = BREAKS;
byte crashes = CRASHES;
byte losses = LOSSES;
byte fails = FAILS;
byte forgets = FORGETS;
bit s_gone; bit d_gone;

/* History, for the properties only. */
bit g_loaded;              /* all devices of the destination held the whole state, in RUNNING_P2P */
bit g_committed;           /* the source recorded COMMITTED */
bit g_d_ran;               /* a device ran at the destination */
bit g_d_all_ran;           /* all did, at once */
bit g_s_again;             /* a device ran at the source after BACK or TAKEN_BACK */
bit g_s_lost;              /* the source lost its devices before they were RELEASED */
bit g_d_lost;              /* the destination lost its devices, or one of them failed */
bit g_d_forgot;
bit g_person;
bit g_bad_discard;         /* the destination was asked to discard what it had taken over */

#define BOTH(a, s)         (a[0] == s && a[1] == s)
#define ANY(a, s)          (a[0] == s || a[1] == s)
#define S_RUNS(i)          (s_dev[i] == RUN || s_dev[i] == PRE)
#define S_TAKES_BACK       (s_rec == BACK || s_rec == TAKEN_BACK)
#define HAS(i)             (d_dev[i] == P2P || d_dev[i] == RUN)
#define D_HOLDS            (HAS(0) && HAS(1))
#define D_TAKEN_OVER       (d_rec == COMMITTED || d_rec == RUNNING)

#ifdef JUDGE_BY_STATE      /* after COMMITTED, a device that shows RUNNING is taken for one that was put there */
#define LOOKS(i)           (HAS(i) || d_dev[i] == LOST)
#else
#define LOOKS(i)           HAS(i)
#endif
#define D_LOOKS            (LOOKS(0) && LOOKS(1))

#ifdef VERIFY              /* the verifier notes which transitions it takes, and writes their names at its end */
c_decl {
  \#include <stdio.h>
  static const char *taken[2048];
  static void take(const char *name, int where) { taken[where] = name; }
  static void __attribute__((destructor)) write_taken(void) {
    for (int i = 0; i < 2048; i++)
      if (taken[i]) printf("take(%c%s%c, 2 * %d + %d)\n", 34, taken[i], 34, i / 2, i % 2);
  }
}
#define NAME(x)            c_code { take(#x, 2 * __LINE__ + 0); }
#define NAME_FAILS(x)      c_code { take(#x, 2 * __LINE__ + 1); }
#else                      /* a counterexample is a list of names */
#define NAME(x)            printf(#x); printf("\n")
#define NAME_FAILS(x)      NAME(x)
#endif
#define S_NEXT(m)          (s_up && s_live && s_got < d_wire && d_out[s_got] == m)
#define D_NEXT(m)          (d_up && d_live && d_got < s_wire && s_out[d_got] == m)
#define S_BUSY             (s_up && s_live && s_rec == BEGUN)
#define D_BUSY             (d_up && d_live && d_rec == BEGUN)
#define S_SAY(m)           s_out[s_sent] = m; s_sent++; if :: wire == LIVE -> s_wire = s_sent :: else fi
#define D_SAY(m)           d_out[d_sent] = m; d_sent++; if :: wire == LIVE -> d_wire = d_sent :: else fi
#define D_ASKED_TO(m)      (d_up && r_heard && r_ask == m)
#define D_MAY_ANSWER       (d_up && r_heard && r_answer == none && wire == RESOLVE)
#define D_ANSWER(m)        r_answer = m; r_ask = none; r_heard = 0

/* A device's state change; it may fail, and then the device is in ERROR. */
#define MOVE(name, guard, dev, from, to, after) \
  :: d_step { (guard) && dev == from -> NAME(name); dev = to; after } \
  :: d_step { (guard) && dev == from && fails > 0 -> NAME_FAILS(name ## _FAILS); dev = ERROR; fails-- }

#ifdef NO_JOURNAL_SYNC
bit s_knows;
#define S_KNOWS            s_knows = 1
#define S_FORGETS          s_knows = 0
#else
#define S_KNOWS            skip
#define S_FORGETS          skip
#endif
#ifdef LOADED_NOT_RECORDED
bit d_knows;
#define D_KNOWS            d_knows = 1
#define D_FORGETS          d_knows = 0
#else
#define D_KNOWS            skip
#define D_FORGETS          skip
#endif

inline s_loses() {
  s_dev[0] = LOST; s_dev[1] = LOST; losses--;
  if :: s_rec != RELEASED -> g_s_lost = 1 :: else fi
}
inline s_dies() {
  s_up = 0; s_live = 0; s_switch = 0; s_heard_loaded = 0; s_doubt = none;
  d_wire = s_got; r_answer = none; wire = DOWN; S_FORGETS
}
inline d_loses() {
  if :: d_dev[0] != FREE -> d_dev[0] = LOST; g_d_lost = 1 :: else fi;
  if :: d_dev[1] != FREE -> d_dev[1] = LOST; g_d_lost = 1 :: else fi;
  losses--
}
inline d_dies() {
  d_up = 0; d_live = 0; d_data = 0; s_wire = d_got; r_ask = none; r_heard = 0; r_answer = none;
  wire = DOWN; D_FORGETS
}

#ifdef NO_JOURNAL_SYNC     /* COMMIT is told before it is recorded; the process that told it knows it */
#define MAY_SAY_COMMIT     (s_rec == BEGUN && s_heard_loaded)
#else
#define MAY_SAY_COMMIT     (s_rec == COMMITTED)
#endif

#ifdef COMMIT_BEFORE_LOADED
#define MAY_COMMIT         (s_rec == BEGUN && s_sent == 2)
#elif defined(NO_JOURNAL_SYNC)
#define MAY_COMMIT         (s_rec == BEGUN && s_sent == 3)
#else
#define MAY_COMMIT         (s_rec == BEGUN && s_heard_loaded)
#endif

#ifdef SOURCE_BACK_AFTER_COMMIT
#define MAY_GO_BACK        (s_rec == BEGUN || s_rec == COMMITTED)
#elif defined(NO_JOURNAL_SYNC)
#define MAY_GO_BACK        (s_rec == BEGUN && !s_knows)
#else
#define MAY_GO_BACK        (s_rec == BEGUN)
#endif

#ifdef NO_BARRIER
#define MAY_STOP           true
#define MAY_RUN            true
#else
#define MAY_STOP \
  ((s_dev[0] == PRE_P2P || s_dev[0] == STOP_COPY) && (s_dev[1] == P2P || s_dev[1] == STOP_COPY))
#define MAY_RUN            (!ANY(s_dev, STOP_COPY) && !ANY(s_dev, STOP) && !ANY(s_dev, PRE_P2P))
#endif

#ifdef DISCARD_ONCE        /* a source that is back does not tell it again on a connection of its own */
#define MUST_DISCARD       false
#else
#define MUST_DISCARD       (s_rec == BACK && !s_ended)
#endif
#define MUST_RUN           (s_rec == COMMITTED && s_doubt == none)

active proctype Source() {
end:
  do
  /* ---- to the switchover */
  :: d_step { s_up && s_rec == NOTHING -> NAME(S_BEGIN); s_rec = BEGUN; s_live = 1 }
  :: d_step { S_BUSY && !met && wire == DOWN && d_up ->
       NAME(S_CONNECT); wire = LIVE; met = 1; d_live = 1; S_SAY(offer) }
  :: d_step { S_NEXT(accept) -> NAME(S_ACCEPTED); s_got++ }
  MOVE(S_PRECOPY, S_BUSY && s_got == 1, s_dev[0], RUN, PRE, skip)
  :: d_step { S_BUSY && !s_switch && s_dev[0] == PRE -> NAME(S_SWITCHOVER); s_switch = 1 }
  MOVE(S_QUIESCE, s_up && s_switch && s_rec == BEGUN, s_dev[0], PRE, PRE_P2P, skip)
  MOVE(S_QUIESCE, s_up && s_switch && s_rec == BEGUN, s_dev[1], RUN, P2P, skip)
  MOVE(S_STOP, s_up && s_switch && s_rec == BEGUN && MAY_STOP, s_dev[0], PRE_P2P, STOP_COPY, skip)
  MOVE(S_STOP, s_up && s_switch && s_rec == BEGUN && MAY_STOP, s_dev[1], P2P, STOP_COPY, skip)
  :: d_step { S_BUSY && s_sent == 1 && BOTH(s_dev, STOP_COPY) ->
       NAME(S_DATA); S_SAY(data) }

  /* ---- hand-over */
  :: d_step { S_NEXT(m_loaded) -> NAME(S_LOADED); s_got++; s_heard_loaded = 1 }
  :: d_step { s_up && s_live && MAY_COMMIT -> NAME(S_COMMIT); s_rec = COMMITTED; g_committed = 1 }
  :: d_step { s_up && s_live && MAY_SAY_COMMIT && s_sent == 2 -> NAME(S_TELL_COMMIT); S_SAY(commit); S_KNOWS }
  :: d_step { S_NEXT(m_running) && s_rec == COMMITTED -> NAME(S_RELEASED); s_got++; s_rec = RELEASED }
  MOVE(S_RELEASE, s_up && s_rec == RELEASED, s_dev[0], STOP_COPY, STOP, skip)
  MOVE(S_RELEASE, s_up && s_rec == RELEASED, s_dev[1], STOP_COPY, STOP, skip)

  /* ---- going back: a failure, a cancellation, no convergence, a connection given up, a restart: at any time */
  :: d_step { s_up && MAY_GO_BACK -> NAME(S_BACK); s_rec = BACK }
  MOVE(S_UNWIND, s_up && S_TAKES_BACK, s_dev[0], STOP_COPY, STOP, skip)
  MOVE(S_UNWIND, s_up && S_TAKES_BACK, s_dev[1], STOP_COPY, STOP, skip)
  MOVE(S_UNWIND, s_up && S_TAKES_BACK, s_dev[0], STOP, P2P, skip)
  MOVE(S_UNWIND, s_up && S_TAKES_BACK, s_dev[1], STOP, P2P, skip)
  MOVE(S_UNWIND, s_up && S_TAKES_BACK, s_dev[0], PRE_P2P, P2P, skip)
  MOVE(S_RUN, s_up && S_TAKES_BACK && MAY_RUN, s_dev[0], PRE, RUN, g_s_again = 1)
  MOVE(S_RUN, s_up && S_TAKES_BACK && MAY_RUN, s_dev[0], P2P, RUN, g_s_again = 1)
  MOVE(S_RUN, s_up && S_TAKES_BACK && MAY_RUN, s_dev[1], P2P, RUN, g_s_again = 1)
  :: d_step { s_up && (S_TAKES_BACK || s_rec == RELEASED) && s_dev[0] == ERROR -> NAME(S_RESET); s_dev[0] = FREE }
  :: d_step { s_up && (S_TAKES_BACK || s_rec == RELEASED) && s_dev[1] == ERROR -> NAME(S_RESET); s_dev[1] = FREE }
  :: d_step { s_up && s_live && s_rec == BACK && met && !s_ended && s_sent < 4 &&
       (s_sent == 0 || s_out[s_sent - 1] != discard) -> NAME(S_TELL_DISCARD); S_SAY(discard) }
  :: d_step { S_NEXT(discarded) && s_rec == BEGUN -> NAME(S_REFUSED); s_got++; s_rec = BACK; s_ended = 1 }
  :: d_step { S_NEXT(discarded) && s_rec == BACK -> NAME(S_ENDED); s_got++; s_ended = 1 }

  /* ---- a connection that breaks: resumed, or given up; what then asks */
  :: d_step { s_up && s_live && met && wire == DOWN && d_up && d_live ->
       NAME(S_RESUME); wire = LIVE; s_wire = s_sent; d_wire = d_sent }
  :: d_step { s_up && s_live && wire == DOWN -> NAME(S_GIVE_UP); s_live = 0; d_wire = s_got }
  :: d_step { s_up && !s_live && wire == DOWN && d_up && MUST_DISCARD ->
       NAME(S_ASK_DISCARD); wire = RESOLVE; r_ask = discard; r_heard = 0; r_answer = none }
  :: d_step { s_up && !s_live && wire == DOWN && d_up && MUST_RUN ->
       NAME(S_ASK_RUN); wire = RESOLVE; r_ask = take_over; r_heard = 0; r_answer = none }
  :: d_step { s_up && r_answer == discarded && s_rec == BACK -> NAME(S_ENDED); r_answer = none; s_ended = 1 }
  :: d_step { s_up && r_answer == m_running && s_rec == COMMITTED ->
       NAME(S_RELEASED); r_answer = none; s_rec = RELEASED }
  :: d_step { s_up && r_answer == discarded && s_rec == COMMITTED ->
       NAME(S_TAKEN_BACK); r_answer = none; s_rec = TAKEN_BACK }
  :: d_step { S_NEXT(discarded) && s_rec == COMMITTED -> NAME(S_TAKEN_BACK); s_got++; s_rec = TAKEN_BACK }
  :: d_step { s_up && (r_answer == lost || r_answer == unknown) && s_rec == COMMITTED ->
       NAME(S_IN_DOUBT); s_doubt = r_answer; r_answer = none }
  :: d_step { S_NEXT(lost) && s_rec == COMMITTED -> NAME(S_IN_DOUBT); s_got++; s_doubt = lost }

  /* ---- a person at the source: the destination is gone for good and fenced; or it said that it cannot run */
#ifdef PERSON_UNFENCED
  :: d_step { s_up && !s_live && s_rec == COMMITTED -> NAME(S_PERSON_RUN); s_rec = TAKEN_BACK; g_person = 1 }
#else
  :: d_step { s_up && !s_live && s_rec == COMMITTED && d_gone ->
       NAME(S_PERSON_RUN); s_rec = TAKEN_BACK; g_person = 1 }
#endif
#if GONE
  :: d_step { s_up && s_rec == COMMITTED && s_doubt != none ->
       NAME(S_PERSON_DISCARD); s_rec = RELEASED; g_person = 1 }
#endif
  od
}

#ifdef DISCARD_NOT_RECORDED   /* the destination keeps it in memory that it discarded */
bit d_unrecorded;
#define D_DISCARDS         d_unrecorded = 1
#define D_DISCARDED        (d_rec == DISCARDED || d_unrecorded)
#else
#define D_DISCARDS         d_rec = DISCARDED
#define D_DISCARDED        (d_rec == DISCARDED)
#endif
#define D_UNDECIDED        (!D_DISCARDED && (d_rec == NOTHING || d_rec == BEGUN || d_rec == LOADED))

#ifdef LOADED_NOT_RECORDED    /* LOADED is told before it is recorded; the process that told it knows it */
#define MAY_SAY_LOADED     (d_rec == BEGUN && BOTH(d_dev, P2P))
#define MAY_RECORD_LOADED  (d_sent == 2)
#define MAY_DISCARD        !d_knows
#else
#define MAY_SAY_LOADED     (d_rec == LOADED)
#define MAY_RECORD_LOADED  true
#define MAY_DISCARD        true
#endif

#ifdef RUN_BEFORE_RECORD      /* COMMIT is heard, the devices go to RUNNING, then COMMITTED is recorded */
#define D_MAY_RUN          (d_rec == COMMITTED || (d_rec == LOADED && D_NEXT(commit)))
#else
#define D_MAY_RUN          (d_rec == COMMITTED)
#endif

active proctype Destination() {
end:
  do
  /* ---- loading */
  :: d_step { D_NEXT(offer) && d_rec == NOTHING -> NAME(D_BEGIN); d_got++; d_rec = BEGUN }
  MOVE(D_RESUMING, D_BUSY && d_sent == 0, d_dev[0], FREE, RESUMING, skip)
  MOVE(D_RESUMING, D_BUSY && d_sent == 0, d_dev[1], FREE, RESUMING, skip)
  :: d_step { D_BUSY && d_sent == 0 && BOTH(d_dev, RESUMING) -> NAME(D_ACCEPT); D_SAY(accept) }
  :: d_step { D_NEXT(data) && d_rec == BEGUN -> NAME(D_DATA); d_got++; d_data = 1 }
  MOVE(D_VALIDATE, D_BUSY && d_data, d_dev[0], RESUMING, STOP, skip)
  MOVE(D_VALIDATE, D_BUSY && d_data, d_dev[1], RESUMING, STOP, skip)
  MOVE(D_READY, D_BUSY && d_dev[1] != RESUMING, d_dev[0], STOP, P2P, g_loaded = BOTH(d_dev, P2P))
  MOVE(D_READY, D_BUSY && d_dev[0] != RESUMING, d_dev[1], STOP, P2P, g_loaded = BOTH(d_dev, P2P))
  :: d_step { D_BUSY && BOTH(d_dev, P2P) && MAY_RECORD_LOADED -> NAME(D_LOADED); d_rec = LOADED }
  :: d_step { d_up && d_live && d_sent == 1 && MAY_SAY_LOADED -> NAME(D_TELL_LOADED); D_SAY(m_loaded); D_KNOWS }

  /* ---- taking over: by the session's COMMIT, or by resolve{run} */
  :: d_step { D_NEXT(commit) && d_rec == LOADED && D_HOLDS -> NAME(D_COMMITTED); d_got++; d_rec = COMMITTED }
  :: d_step { D_NEXT(commit) && d_rec == LOADED && !D_HOLDS -> NAME(D_UNFIT); d_got++; D_DISCARDS }
  :: d_step { D_ASKED_TO(take_over) && d_rec == LOADED && !D_DISCARDED && D_HOLDS ->
       NAME(D_COMMITTED); d_rec = COMMITTED }
  :: d_step { D_ASKED_TO(take_over) && d_rec == LOADED && !D_DISCARDED && !D_HOLDS -> NAME(D_UNFIT); D_DISCARDS }
  MOVE(D_RUN, d_up && D_MAY_RUN &&
       d_dev[1] != STOP, d_dev[0], P2P, RUN, g_d_ran = 1; g_d_all_ran = BOTH(d_dev, RUN))
  MOVE(D_RUN, d_up && D_MAY_RUN &&
       d_dev[0] != STOP, d_dev[1], P2P, RUN, g_d_ran = 1; g_d_all_ran = BOTH(d_dev, RUN))
  :: d_step { d_up && d_rec == COMMITTED && (BOTH(d_dev, RUN) || (D_LOOKS && !ANY(d_dev, P2P))) ->
       NAME(D_RUNNING); d_rec = RUNNING }
  :: d_step { d_up && d_live && d_rec == RUNNING && d_sent == 2 -> NAME(D_TELL_RUNNING); D_SAY(m_running) }
  :: d_step { d_up && d_live && d_rec == COMMITTED && !D_LOOKS && d_sent == 2 -> NAME(D_TELL_LOST); D_SAY(lost) }

  /* ---- discarding: before LOADED for any reason and at a restart; from LOADED on by the source's word only */
  :: d_step { d_up && d_rec == BEGUN && !D_DISCARDED && MAY_DISCARD -> NAME(D_DISCARD); D_DISCARDS }
  :: d_step { D_NEXT(discard) && D_UNDECIDED -> NAME(D_DISCARD_HEARD); d_got++; D_DISCARDS }
  :: d_step { D_NEXT(discard) && !D_UNDECIDED -> NAME(D_DISCARD_AGAIN); d_got++; g_bad_discard = D_TAKEN_OVER }
  :: d_step { D_NEXT(data) && D_DISCARDED -> NAME(D_TOO_LATE); d_got++ }
  :: d_step { D_ASKED_TO(discard) && D_UNDECIDED -> NAME(D_DISCARD_HEARD); D_DISCARDS }
  :: d_step { d_up && D_DISCARDED && d_dev[0] != FREE -> NAME(D_RESET); d_dev[0] = FREE }
  :: d_step { d_up && D_DISCARDED && d_dev[1] != FREE -> NAME(D_RESET); d_dev[1] = FREE }
  :: d_step { d_up && d_live && D_DISCARDED && !d_told && d_sent < 4 ->
       NAME(D_TELL_DISCARDED); D_SAY(discarded); d_told = 1 }

  /* ---- a connection given up; one that asks.  What is unread of the session's is dropped before it is heard. */
  :: d_step { d_up && d_live && wire != LIVE -> NAME(D_GIVE_UP); d_live = 0; s_wire = d_got }
  :: d_step { d_up && r_ask != none && !r_heard -> NAME(D_ASKED); r_heard = 1; d_live = 0; s_wire = d_got;
       g_bad_discard = (r_ask == discard && D_TAKEN_OVER) }
  :: d_step { D_MAY_ANSWER && D_DISCARDED ->
       NAME(D_ANSWER_DISCARDED); D_ANSWER(discarded) }
  :: d_step { D_MAY_ANSWER && r_ask == take_over && d_rec == RUNNING && D_LOOKS ->
       NAME(D_ANSWER_RUNNING); D_ANSWER(m_running) }
  :: d_step { D_MAY_ANSWER && r_ask == take_over && D_TAKEN_OVER && !D_LOOKS ->
#ifdef DISCARDED_FOR_LOST     /* a destination that took over and then lost its devices says that it discarded */
       NAME(D_ANSWER_LOST); D_ANSWER(discarded); d_rec = DISCARDED }
#else
       NAME(D_ANSWER_LOST); D_ANSWER(lost) }
#endif
  :: d_step { D_MAY_ANSWER && r_ask == take_over && d_rec == NOTHING ->
#ifdef PRESUME_ABORT_ON_RUN   /* a destination that knows nothing of the session says that it discarded */
       NAME(D_ANSWER_UNKNOWN); D_ANSWER(discarded); d_rec = DISCARDED }
#else
       NAME(D_ANSWER_UNKNOWN); D_ANSWER(unknown) }
#endif

  /* ---- a person at the destination: to run, the source must be gone for good and fenced; to discard, not */
  :: d_step { d_up && !d_live && d_rec == LOADED && s_gone && D_HOLDS ->
       NAME(D_PERSON_RUN); d_rec = COMMITTED; g_person = 1 }
#if GONE
  :: d_step { d_up && !d_live && d_rec == LOADED -> NAME(D_PERSON_DISCARD); D_DISCARDS; g_person = 1 }
#endif
#ifdef DEST_DECIDES_ALONE
  :: d_step { d_up && !d_live && d_rec == LOADED -> NAME(D_ALONE); d_rec = COMMITTED }
#endif
#ifdef DEST_DISCARDS_ALONE
  :: d_step { d_up && !d_live && d_rec == LOADED -> NAME(D_ALONE); d_rec = DISCARDED }
#endif
  od
}

active proctype World() {
end:
  do
  /* ---- a break; then what was under way is lost, all or a part: the last first, as TCP loses */
  :: d_step { wire != DOWN && breaks > 0 -> NAME(W_BREAK); wire = DOWN; breaks--; r_answer = none }
  :: d_step { wire == DOWN && s_wire > d_got -> NAME(W_LOSE); s_wire-- }
  :: d_step { wire == DOWN && d_wire > s_got -> NAME(W_LOSE); d_wire-- }
  :: d_step { wire == DOWN && r_ask != none && !r_heard -> NAME(W_LOSE); r_ask = none }

  /* ---- crashes of the engine, with its devices or without; losses of devices alone */
  :: d_step { s_up && crashes > 0 -> NAME(W_S_CRASH); crashes--; s_dies() }
  :: d_step { s_up && crashes > 0 && losses > 0 -> NAME(W_S_CRASH_AND_LOSE); crashes--; s_dies(); s_loses() }
  :: d_step { s_up && losses > 0 && s_rec != NOTHING -> NAME(W_S_LOSE); s_loses() }
  :: d_step { !s_up && !s_gone -> NAME(W_S_RESTART); s_up = 1 }
  :: d_step { d_up && crashes > 0 -> NAME(W_D_CRASH); crashes--; d_dies() }
  :: d_step { d_up && crashes > 0 && losses > 0 -> NAME(W_D_CRASH_AND_LOSE); crashes--; d_dies(); d_loses() }
  :: d_step { d_up && losses > 0 && d_rec != NOTHING -> NAME(W_D_LOSE); d_loses() }
  :: d_step { d_up && losses > 0 && d_rec != NOTHING && d_dev[0] != FREE ->
       NAME(W_D_LOSE_ONE); losses--; d_dev[0] = LOST; g_d_lost = 1 }
  :: d_step { !d_up && !d_gone -> NAME(W_D_RESTART); d_up = 1 }
#if FORGETS
  :: d_step { !d_up && forgets > 0 && d_rec != NOTHING ->
       NAME(W_D_FORGETS); forgets--; d_rec = NOTHING; g_d_forgot = 1 }
#endif

  /* ---- gone for good, and fenced: no device there runs any more */
#if GONE
  :: d_step { s_up && !d_gone && s_rec != NOTHING -> NAME(W_S_GONE); s_gone = 1; s_dies(); losses++; s_loses() }
  :: d_step { d_up && !s_gone && s_rec != NOTHING -> NAME(W_D_GONE); d_gone = 1; d_dies(); losses++; d_loses() }
#endif
  od
}

/*
 * The properties.  Each is an assertion on a name that is always false, behind the negation of what must hold:
 * so the message of a violation names it.
 */
bit never_two_running, no_second_past, commit_after_loaded, run_after_commit, peer_to_peer, told_is_recorded,
    no_discard_of_taken, released_when_ran, one_runs_in_the_end, committed_survives, settled_in_the_end,
    nothing_left_halfway;

#define S_GOES_ON(i)  (s_dev[i] == RUN || s_dev[i] == FREE)  /* FREE: it failed, and was reset */
#define S_IN_THE_END  (S_TAKES_BACK && S_GOES_ON(0) && S_GOES_ON(1))
#define D_IN_THE_END  (d_rec == RUNNING && BOTH(d_dev, RUN))
#define D_BROKEN      (D_TAKEN_OVER && (ANY(d_dev, LOST) || ANY(d_dev, ERROR)))
#define S_AT_REST(i)  (S_GOES_ON(i) || s_dev[i] == STOP || s_dev[i] == LOST)
#define D_AT_REST(i)  (d_dev[i] == RUN || d_dev[i] == FREE)
#define DEAF(dev, i)  (dev[i] == STOP || dev[i] == STOP_COPY || dev[i] == RESUMING)

/* No moment in which devices of both sides can run. */
#define NEVER_TWO_RUNNING    !((S_RUNS(0) || S_RUNS(1)) && ANY(d_dev, RUN))
/* Once a device has run at the destination, none runs at the source, even after the destination has died: it
 * would repeat a past that others saw go on.  Nor the other way round.  (A person may decide for it.) */
#define NO_SECOND_PAST \
  (g_person || (!(g_d_ran && (S_RUNS(0) || S_RUNS(1))) && !(g_s_again && ANY(d_dev, RUN))))
/* COMMIT is neither recorded nor told before all devices of the destination have loaded. */
#define COMMIT_AFTER_LOADED  (g_loaded || (!g_committed && s_out[2] != commit))
/* No device runs at the destination before COMMITTED is durable there. */
#define RUN_AFTER_COMMIT     (g_d_forgot || D_TAKEN_OVER || !ANY(d_dev, RUN))
/* No device that can start DMA next to one that cannot take it. */
#define PEER_TO_PEER         !((S_RUNS(0) && DEAF(s_dev, 1)) || (S_RUNS(1) && DEAF(s_dev, 0)) || \
                               (d_dev[0] == RUN && DEAF(d_dev, 1)) || (d_dev[1] == RUN && DEAF(d_dev, 0)))
/* What the peer was told is in the journal. */
#define TOLD_IS_RECORDED     (g_d_forgot || ((s_out[2] != commit || g_committed) && \
                               (d_out[1] != m_loaded || (d_rec != NOTHING && d_rec != BEGUN)) && \
                               (!(d_told || r_answer == discarded) || d_rec == DISCARDED) && \
                               (!(d_out[2] == m_running || r_answer == m_running) || d_rec == RUNNING)))
/* The source never asks to discard what the destination has taken over.  (A person may have decided without
 * knowing that it did.) */
#define NO_DISCARD_OF_TAKEN  (g_person || !g_bad_discard)
/* The source releases its devices only if all have run at the destination, or a person says so. */
#define RELEASED_WHEN_RAN    (s_rec != RELEASED || g_d_all_ran || g_person)

/* In the end, that is when no transition is left; both sides are back, unless one is gone for good. */

/* Exactly one side runs; unless the virtual machine was lost as in a crash of its host: the source lost its
 * devices before it recorded COMMITTED, or the destination after it did (or they fail), or both lost them. */
#define ONE_RUNS_IN_THE_END \
  (S_IN_THE_END != D_IN_THE_END || D_BROKEN || (g_s_lost && (!g_committed || g_d_lost || g_person)) || g_d_forgot)
/* Once the source has recorded COMMITTED, it is the destination that runs, whatever becomes of the source;
 * unless the destination lost its devices, or they fail, or a person decided. */
#define COMMITTED_SURVIVES \
  (!g_committed || D_IN_THE_END || g_d_lost || ANY(d_dev, ERROR) || g_d_forgot || g_person)
/* Both journals say how it ended, and the source knows that the destination's does; or a person must decide,
 * since the destination took over and is broken, or its journal is lost. */
#define S_SETTLED \
  (s_gone || s_rec == RELEASED || s_rec == TAKEN_BACK || (s_rec == BACK && (s_ended || d_gone)) || S_FOR_A_PERSON)
#define D_SETTLED \
  (d_gone || d_rec == NOTHING || d_rec == DISCARDED || d_rec == RUNNING || D_BROKEN || g_d_forgot)
#define S_FOR_A_PERSON       (s_rec == COMMITTED && s_doubt != none)
#define SETTLED_IN_THE_END   (S_SETTLED && D_SETTLED)
/* No device is left half-way, and none in a saving state, except where a person must decide. */
#define NOTHING_LEFT_HALFWAY \
  (((S_AT_REST(0) && S_AT_REST(1)) || S_FOR_A_PERSON) && \
   ((D_AT_REST(0) && D_AT_REST(1)) || D_BROKEN || d_gone || g_d_forgot))

active proctype Properties() {
end:
  do
  :: d_step { ON(1) && !(NEVER_TWO_RUNNING) -> assert(never_two_running) }
  :: d_step { ON(2) && !(NO_SECOND_PAST) -> assert(no_second_past) }
  :: d_step { ON(3) && !(COMMIT_AFTER_LOADED) -> assert(commit_after_loaded) }
  :: d_step { ON(4) && !(RUN_AFTER_COMMIT) -> assert(run_after_commit) }
  :: d_step { ON(5) && !(PEER_TO_PEER) -> assert(peer_to_peer) }
  :: d_step { ON(6) && !(TOLD_IS_RECORDED) -> assert(told_is_recorded) }
  :: d_step { ON(7) && !(NO_DISCARD_OF_TAKEN) -> assert(no_discard_of_taken) }
  :: d_step { ON(8) && !(RELEASED_WHEN_RAN) -> assert(released_when_ran) }
  :: timeout -> d_step {
       if :: ON(9) && !(ONE_RUNS_IN_THE_END) -> assert(one_runs_in_the_end) :: else fi;
       if :: ON(10) && !(COMMITTED_SURVIVES) -> assert(committed_survives) :: else fi;
       if :: ON(11) && !(SETTLED_IN_THE_END) -> assert(settled_in_the_end) :: else fi;
       if :: ON(12) && !(NOTHING_LEFT_HALFWAY) -> assert(nothing_left_halfway) :: else fi };
     break
  od
}
