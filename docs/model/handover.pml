/* The hand-over of a virtual machine, and what follows from a wire that breaks and sides that crash.
 *
 * Promela, for Spin 6.5; `make check-model` checks it.  docs/model.md says what is modelled and what not.
 * Transitions (S_..., D_...) have the names that the docstrings of vfioflow/handover.py, takeover.py,
 * resolution.py and past.py use.  Messages are in small letters, as on the wire; records of a journal
 * in capitals; device states begin with a capital.
 *
 * Bounds and options (cpp -D):
 *   BREAKS, CRASHES, FAULTS, UNWRITTEN   how often the wire breaks, a side crashes, something else goes
 *                                        wrong (a device, a time limit, a cancellation), a record fails
 *   HOST_CRASHES                         crashes that also take devices which a VMM holds
 *   MUTANT_...                           something left out, to see that a property notices
 */

#ifndef BREAKS
#define BREAKS 2
#endif
#ifndef CRASHES
#define CRASHES 2
#endif
#ifndef FAULTS
#define FAULTS 1
#endif
#ifndef UNWRITTEN
#define UNWRITTEN 1
#endif
#ifndef HOST_CRASHES
#define HOST_CRASHES 0
#endif

mtype = {
    /* a device.  Free: RUNNING by VFIO's word, and empty: reset, or opened anew */
    Running, Pre_copy, Pre_copy_p2p, Running_p2p, Stop_copy, Stop, Resuming, Free,
    /* a journal's last record */
    NONE, BEGUN, COMMITTED, BACK, RELEASED, TAKEN_BACK, LOADED, RUNNING, DISCARDED, TOLD,
    /* a message; end: the last of the devices' data */
    none, offer, end, loaded, commit, running, discarded, failed, goodbye,
    /* what a source says that asks with `resolve` */
    run_, discard,
    /* the properties */
    never_two_running, never_twice_from_one_moment, no_commit_before_loaded, none_runs_before_committed, p2p_barrier,
    a_promise_is_recorded, nobody_runs_who_was_discarded,
    one_runs_in_the_end, committed_is_not_lost, none_saves_in_the_end, runs_or_is_free, journals_have_ended
};

/* ------------------------------------------------------------------ what there is */

mtype sj = NONE, dj = NONE;        /* the journals, as they are on the disk */
mtype sdev[2], ddev[2];            /* the devices, of the source and of the destination */
bool svcpu = true, dvcpu = false;  /* whether the virtual machine's processors run */
bool s_up = true, d_up = true;     /* whether there is a process on each side */
bool s_outlives, d_outlives;       /* whether a VMM holds the devices, so that they outlive the process */

/* The session's control connection.  What is in a channel when it breaks may arrive or not. */
chan to_d = [2] of { mtype };
chan to_s = [2] of { mtype };
bool open = false;

/* The connection of a source that asks: one at a time, and perhaps an older one that nobody reads from
 * any more, the request of which may yet be heard. */
bool asking = false;               /* it is open */
mtype asked = none, stale = none;  /* requests on their way */
bool serving = false;              /* the destination has heard the one of the connection that is open */
mtype answer = none;               /* the answer on its way */
bool thanks = false;               /* goodbye on its way */

byte breaks = BREAKS, crashes = CRASHES, faults = FAULTS, unwritten = UNWRITTEN, hosts = HOST_CRASHES;

/* For the properties only. */
bool all_loaded = false;           /* every device of the destination has taken its state, and checked it */
bool s_again = false;              /* the source ran again after it had been stopped to be moved */
bool d_ran = false;                /* something ran at the destination */
bool s_lost = false;               /* the source's devices were lost, before it was RELEASED */
bool s_lost_early = false;         /* and before it was COMMITTED */
bool d_lost = false;               /* the destination's were, when it was COMMITTED or later */
bool d_emptied = false;            /* or earlier, with what they had taken so far */
bool pruned = false;               /* the destination's entry was removed for its age, after TOLD */
bool news = false;                 /* the destination was started again since the source asked */
bool s_doubt = false;              /* the source ended in doubt */

#define CAN_DMA(d)   ((d) == Running || (d) == Pre_copy)
#define S_RUNS       (svcpu || CAN_DMA(sdev[0]) || CAN_DMA(sdev[1]))
#define D_RUNS       (dvcpu || CAN_DMA(ddev[0]) || CAN_DMA(ddev[1]))
#define S_WHOLE      (svcpu && sdev[0] == Running && sdev[1] == Running)
#define D_WHOLE      (dvcpu && ddev[0] == Running && ddev[1] == Running)
#define D_FREE       (ddev[0] == Free && ddev[1] == Free)
#define SAVING(d)    ((d) == Pre_copy || (d) == Pre_copy_p2p || (d) == Stop_copy || (d) == Resuming)
#define HALTED(d)    ((d) == Stop || (d) == Stop_copy || (d) == Resuming)

/* As judge() sees them: a device that is Free says RUNNING. */
#define AS_LOADED(d)      ((d) == Running_p2p)
#define SAYS_RUNNING(d)   ((d) == Running || (d) == Free)
#define HELD              (AS_LOADED(ddev[0]) && AS_LOADED(ddev[1]))
#define MAY_CARRY_ON(d)   (AS_LOADED(d) || (SAYS_RUNNING(d) && d_outlives))
#define FOUND_RUNNING     (s_outlives && (SAYS_RUNNING(sdev[0]) || SAYS_RUNNING(sdev[1])))

#define BROKEN(name) printf("broken: %e\n", name); assert(false)

/* ------------------------------------------------------------------------- parts */

/* Macros where a label or an array is passed, which an inline cannot take. */

/* A record: it is on the disk before anything that follows; or it is said to have failed, and is there or not. */
#define record(journal, step, unless_written)                                                         \
    if                                                                                                \
    :: atomic { true -> journal = step }                                                              \
    :: atomic { unwritten > 0 -> unwritten--; if :: journal = step :: skip fi; goto unless_written }  \
    fi

inline clear(channel) {
    do :: channel?_ :: empty(channel) -> break od
}

inline say(channel, message) {
    if :: atomic { open -> channel!message } :: atomic { !open -> skip } fi
}

/* Both devices to a state, one by one in any order; each may fail, and then the other may have arrived or not. */
#define cross(dev, state, on_fault)                            \
    do                                                         \
    :: atomic { dev[0] != state -> dev[0] = state }            \
    :: atomic { dev[1] != state -> dev[1] = state }            \
    :: atomic { dev[0] == state && dev[1] == state -> break }  \
    :: atomic { faults > 0 -> faults--; goto on_fault }        \
    od

/* As cross, and never fails. */
#define bring(dev, state)                                      \
    do                                                         \
    :: atomic { dev[0] != state -> dev[0] = state }            \
    :: atomic { dev[1] != state -> dev[1] = state }            \
    :: atomic { dev[0] == state && dev[1] == state -> break }  \
    od

/* All that do not run to the P2P state first, then all to RUNNING; then the vCPUs. */
inline back_to_running() {
    do
    :: atomic { sdev[0] == Stop || sdev[0] == Stop_copy || sdev[0] == Pre_copy_p2p -> sdev[0] = Running_p2p }
    :: atomic { sdev[1] == Stop || sdev[1] == Stop_copy || sdev[1] == Pre_copy_p2p -> sdev[1] = Running_p2p }
    :: atomic { (CAN_DMA(sdev[0]) || sdev[0] == Running_p2p) && (CAN_DMA(sdev[1]) || sdev[1] == Running_p2p) -> break }
    od;
    do
    :: atomic { sdev[0] != Running -> sdev[0] = Running; s_again = (s_again || !svcpu) }
    :: atomic { sdev[1] != Running -> sdev[1] = Running; s_again = (s_again || !svcpu) }
    :: atomic { sdev[0] == Running && sdev[1] == Running -> break }
    od;
    svcpu = true
}

/* Ask the destination what has become of the session, again and again while connections break. */
inline ask(decision) {
    do
    :: atomic { !asking && answer == none && d_up ->
           asking = true; asked = decision; news = false }
    :: atomic { answer != none -> heard = answer; answer = none; break }
    od
}

inline hang_up() {
    asking = false; asked = none; serving = false; answer = none
}

/* The answer, to a source that is still there to hear it. */
inline tell(message) {
    atomic {
        if :: serving -> answer = message :: else fi;
        serving = false
    }
}

/* -------------------------------------------------------------------- the source */

proctype Source() {
    mtype heard;
begin:
    {
        if
        :: atomic { sj == NONE && !s_lost -> skip }
        :: atomic { sj == NONE && s_lost -> goto done }  /* there is nothing to migrate */
        :: atomic { sj == BEGUN -> goto run_here }
        :: atomic { sj == COMMITTED -> goto comeback }
        :: atomic { sj == RELEASED -> goto release }
        :: atomic { sj == BACK -> goto run_here }
        :: atomic { sj == TAKEN_BACK -> goto resume }
        fi;

S_BEGIN:
        sj = BEGUN;
        if
        :: atomic { d_up -> open = true; to_d!offer }
        :: atomic { faults > 0 -> faults--; goto go_back }
        fi;
        cross(sdev, Pre_copy, go_back);
        svcpu = false;
#ifdef MUTANT_NO_P2P_BARRIER
        cross(sdev, Stop_copy, go_back);
#endif
        cross(sdev, Pre_copy_p2p, go_back);
        cross(sdev, Stop_copy, go_back);
        say(to_d, end);
#ifndef MUTANT_COMMIT_BEFORE_LOADED
        if
        :: atomic { to_s?heard ->
               if :: heard == loaded :: else -> goto go_back fi }
        :: atomic { !open && empty(to_s) -> goto go_back }
        :: atomic { faults > 0 -> faults--; goto go_back }
        fi;
#endif

S_COMMIT:
        /* COMMIT only when every device of the destination has its state. */
        if
        :: atomic { !all_loaded -> BROKEN(no_commit_before_loaded) }
        :: atomic { all_loaded -> skip }
        fi;
#ifdef MUTANT_TELL_BEFORE_RECORD
        say(to_d, commit);
        record(sj, COMMITTED, go_back);
#else
#ifdef MUTANT_RUN_BEFORE_BACK
        record(sj, COMMITTED, go_back);
#else
        record(sj, COMMITTED, unsure);
#endif
        say(to_d, commit);
#endif
        if
        :: atomic { to_s?heard ->
               if
               :: heard == running -> goto S_RELEASED
               :: heard == discarded -> goto S_TAKEN_BACK
               :: heard == failed -> goto doubt
               :: heard == loaded -> goto comeback
               fi }
        :: atomic { !open && empty(to_s) ->
#ifdef MUTANT_SOURCE_BACK_AFTER_COMMIT
               goto go_back
#else
               goto comeback
#endif
               }
        fi;

        /* COMMITTED: only the destination knows. */
comeback:
        atomic { open = false; clear(to_s) };
        if
        :: atomic { FOUND_RUNNING -> hang_up() }
           ask(discard);
           atomic {
               hang_up();
               if
               :: heard == discarded -> goto S_TAKEN_BACK
               :: else -> goto doubt
               fi }
        :: atomic { !FOUND_RUNNING -> hang_up() }
           ask(run_);
           atomic {
               if  /* the connection stays open, for goodbye */
               :: heard == discarded -> hang_up(); goto S_TAKEN_BACK
               :: heard == running -> goto S_RELEASED
               :: else -> hang_up(); goto doubt
               fi }
        fi;

        /* The destination runs.  It may forget the session once it has heard goodbye, so the record comes first. */
S_RELEASED:
#ifdef MUTANT_GOODBYE_BEFORE_RELEASED
        atomic { if :: asking -> thanks = true :: else fi };
        say(to_d, goodbye);
        record(sj, RELEASED, release);
#else
        record(sj, RELEASED, release);
        atomic { if :: asking -> thanks = true :: else fi };
        say(to_d, goodbye);
#endif
release:
        atomic { hang_up() };
        if
        :: atomic { !s_lost -> skip }
           bring(sdev, Stop)
        :: atomic { s_lost -> skip }
        fi;
        goto done;

        /* The destination has promised never to run. */
S_TAKEN_BACK:
        record(sj, TAKEN_BACK, resume);
resume:
        atomic { open = false; clear(to_s) };
        if
        :: atomic { s_lost -> skip }
        :: atomic { !s_lost -> skip }
           back_to_running()
        fi;
        goto done;

        /* COMMITTED could not be recorded, and may be there all the same: then a process after this one would
         * have the destination run.  So the devices stay stopped until that cannot be. */
unsure:
        say(to_d, failed);
        atomic { open = false; clear(to_s); hang_up() };
        record(sj, BACK, unsure_still);
        goto run_here;
unsure_still:
        ask(discard);
        atomic {
            hang_up();
            if
            :: heard == discarded -> goto run_here
            :: else -> goto doubt
            fi };

        /* COMMIT was never said. */
go_back:
        say(to_d, failed);
        atomic { open = false; clear(to_s) };
run_here:
        if
        :: atomic { s_lost -> skip }
        :: atomic { !s_lost -> skip }
           back_to_running()
        fi;
S_BACK:
        if
        :: atomic { sj != BACK -> skip }
           record(sj, BACK, tell_discard)
        :: atomic { sj == BACK -> skip }
        fi;
tell_discard:
        atomic { hang_up() };
        ask(discard);
        atomic {
            hang_up();
            if
            :: heard == running && !s_lost -> BROKEN(nobody_runs_who_was_discarded)
            :: else
            fi };
        if
        :: atomic { heard == failed -> goto doubt }
        :: atomic { heard != failed -> goto done }
        fi;

        /* What has not ended is run again by somebody; after "failed", when the destination was started again. */
doubt:
        s_doubt = true;
end_in_doubt:
        atomic { news -> s_doubt = false; goto begin };

done:
        atomic {
            if
            :: sj == BEGUN || sj == COMMITTED -> goto begin
            :: else
            fi };
end_source:
        false
    } unless {
        atomic { !s_up -> heard = none }
    };
    atomic { s_up = true; s_doubt = false; goto begin }
}

/* --------------------------------------------------------------- the destination */

inline lose_destination() {
    if :: !D_FREE -> d_emptied = true :: else fi;
    if :: dj == COMMITTED || dj == RUNNING || dj == TOLD || pruned -> d_lost = true :: else fi;
    ddev[0] = Free; ddev[1] = Free; dvcpu = false
}

/* A request of `resolve`, of the connection that is open or of one before it. */
#define REQUEST (asked != none || stale != none)

inline hear(decision) {
    if
    :: asked != none -> decision = asked; asked = none; serving = true
    :: stale != none -> decision = stale; stale = none
    fi
}

proctype Destination() {
    mtype heard, decision;
    bool live;       /* a session of this process: it answers on the control connection too */
    mtype known;     /* what this process answers without looking into its journal: it did it itself */
begin:
    {
        live = false; known = none;
        if
        :: atomic { dj == BEGUN -> goto D_DISCARDED }
        :: atomic { dj == COMMITTED && MAY_CARRY_ON(ddev[0]) && MAY_CARRY_ON(ddev[1]) -> goto take_over }
#ifndef MUTANT_LEFTOVERS
        :: atomic { dj == DISCARDED -> goto reset }  /* recorded, and perhaps not reset */
#endif
        :: else
        fi;

idle:
end_idle:
        do
        :: atomic { to_d?heard ->
               if
               :: heard == offer && dj == NONE && !pruned && D_FREE -> goto D_BEGIN
               :: heard == offer && !(dj == NONE && !pruned && D_FREE) -> open = false; clear(to_d); to_s!failed
               :: heard == goodbye && dj == RUNNING -> dj = TOLD
               :: else
               fi }
        :: atomic { thanks ->  /* D_TOLD, on the other connection */
               thanks = false; if :: dj == RUNNING -> dj = TOLD :: else fi }
        :: atomic { REQUEST ->  /* judge() */
               hear(decision);
               if
               :: known != none -> tell(known); goto idle
               :: else
               fi;
               if
               :: dj == NONE -> goto D_DISCARDED  /* presumed abort */
               :: dj == BEGUN -> goto D_DISCARDED
               :: dj == LOADED && decision == discard -> goto D_DISCARDED
               :: dj == LOADED && decision == run_ && HELD -> goto D_COMMITTED
               :: dj == LOADED && decision == run_ && !HELD -> goto D_DISCARDED
               :: dj == COMMITTED && decision == run_ && MAY_CARRY_ON(ddev[0]) && MAY_CARRY_ON(ddev[1]) -> goto take_over
               :: dj == COMMITTED && (decision == discard || !(MAY_CARRY_ON(ddev[0]) && MAY_CARRY_ON(ddev[1]))) ->
                      tell(failed)
               :: dj == RUNNING || dj == TOLD -> tell(running)
               :: dj == DISCARDED -> tell(discarded)
               fi }
        od;

D_BEGIN:
        dj = BEGUN;
        live = true;
        cross(ddev, Resuming, give_up);
        /* The data comes. */
        if
        :: atomic { to_d?heard ->
               if :: heard == end :: else -> goto give_up fi }
        :: atomic { !open && empty(to_d) -> goto give_up }
        :: atomic { REQUEST -> hear(decision); goto give_up }  /* who was never told LOADED cannot have committed */
        :: atomic { faults > 0 -> faults--; goto give_up }
        fi;
        cross(ddev, Stop, give_up);
        cross(ddev, Running_p2p, give_up);
        all_loaded = true;

D_LOADED:
        record(dj, LOADED, give_up);
        say(to_s, loaded);

        /* Only the source's word counts. */
        if
        :: atomic { to_d?heard ->
               if
               :: heard == commit -> goto D_COMMITTED
               :: else -> goto D_DISCARDED
               fi }
        :: atomic { REQUEST ->
               hear(decision);
               if :: decision == run_ -> goto D_COMMITTED :: decision == discard -> goto D_DISCARDED fi }
#ifdef MUTANT_DEST_DECIDES_ALONE
        :: atomic { !open && empty(to_d) -> goto D_COMMITTED }
#endif
        fi;

D_COMMITTED:
#ifdef MUTANT_RUN_BEFORE_COMMITTED
        bring(ddev, Running);
#endif
        record(dj, COMMITTED, unrecorded);

take_over:
        do
        :: atomic { ddev[0] != Running && ddev[0] != Free -> ddev[0] = Running; d_ran = true }
        :: atomic { ddev[1] != Running && ddev[1] != Free -> ddev[1] = Running; d_ran = true }
        :: atomic { SAYS_RUNNING(ddev[0]) && SAYS_RUNNING(ddev[1]) -> break }
        :: atomic { faults > 0 -> faults--; goto doubt }
        od;
        atomic { dvcpu = true; d_ran = true };
D_RUNNING:
        record(dj, RUNNING, runs);
runs:
        known = running;
        if
        :: atomic { live -> live = false }
           say(to_s, running)
        :: atomic { !live -> skip }
        fi;
        tell(running);
        goto idle;

        /* Before LOADED: the source is told at once, and cannot have committed. */
give_up:
        say(to_s, failed);
        goto D_DISCARDED;

        /* COMMITTED could not be recorded, and may be there all the same.  Nothing has run. */
unrecorded:
        if
        :: atomic { live -> skip }
        :: atomic { !live -> goto doubt }
        fi;

D_DISCARDED:
#ifdef MUTANT_DISCARD_NOT_RECORDED
        goto reset;
#endif
#ifdef MUTANT_RESET_BEFORE_RECORD
        if
        :: atomic { live -> skip }
           bring(ddev, Free);
           record(dj, DISCARDED, say_discarded)
        :: atomic { !live -> skip }
           record(dj, DISCARDED, doubt)
        fi;
#else
        record(dj, DISCARDED, doubt);
#endif
reset:
        do
        :: atomic { !SAYS_RUNNING(ddev[0]) -> ddev[0] = Free }
        :: atomic { !SAYS_RUNNING(ddev[1]) -> ddev[1] = Free }
        :: atomic { SAYS_RUNNING(ddev[0]) && SAYS_RUNNING(ddev[1]) -> break }
        od;
say_discarded:
        if
#ifndef NO_PROMISE
        :: atomic { (live || serving) && dj != DISCARDED -> BROKEN(a_promise_is_recorded) }
#endif
        :: atomic { else -> skip }
        fi;
        if
        :: atomic { live -> live = false; known = discarded }
           say(to_s, discarded)
        :: atomic { !live -> skip }
        fi;
        atomic { open = false; clear(to_d) };
        tell(discarded);
        goto idle;

        /* There is no answer but "failed", until somebody starts it again. */
doubt:
        say(to_s, failed);
        atomic { open = false; clear(to_d) };
        tell(failed);
end_in_doubt:
        do
        :: atomic { REQUEST -> hear(decision); tell(failed) }
        :: atomic { thanks -> thanks = false }
        :: atomic { true ->  /* which ends its process, and devices that do not outlive it */
               news = true;
               if :: d_outlives :: else -> lose_destination() fi;
               goto begin }
        od
    } unless {
        atomic { !d_up -> heard = none; decision = none }
    };
    atomic { d_up = true; news = true; goto begin }
}

/* ------------------------------------------------------ the wire, crashes, and age */

inline keep_or_clear(channel) {
    if :: skip :: clear(channel) fi
}

inline drop_request() {
    if
    :: asked != none -> if :: stale = asked :: skip fi
    :: else
    fi;
    if :: answer != none -> if :: skip :: answer = none fi :: else fi;
    if :: thanks -> if :: skip :: thanks = false fi :: else fi;
    asked = none; asking = false; serving = false
}

inline lose_source() {
    if :: sj != RELEASED -> s_lost = true :: else fi;
    if :: sj == NONE || sj == BEGUN || sj == BACK || sj == TAKEN_BACK -> s_lost_early = true :: else fi;
    sdev[0] = Free; sdev[1] = Free; svcpu = false
}

inline crash_source() {
    s_up = false; open = false; clear(to_s); keep_or_clear(to_d);
    drop_request(); answer = none
}

inline crash_destination() {
    d_up = false; open = false; clear(to_d); keep_or_clear(to_s);
    drop_request(); stale = none; thanks = false
}

proctype Weather() {
    do
    :: atomic { breaks > 0 && open -> breaks--; open = false; keep_or_clear(to_d); keep_or_clear(to_s) }
    :: atomic { breaks > 0 && asking -> breaks--; drop_request() }
    :: atomic { crashes > 0 && s_up -> crashes--; crash_source();
           if :: s_outlives :: else -> lose_source() fi }
    :: atomic { crashes > 0 && d_up -> crashes--; crash_destination();
           if :: d_outlives :: else -> lose_destination() fi }
    :: atomic { hosts > 0 && s_up && s_outlives -> hosts--; crash_source(); lose_source() }
    :: atomic { hosts > 0 && d_up && d_outlives -> hosts--; crash_destination(); lose_destination() }
    :: atomic { dj == TOLD && stale == none -> dj = NONE; pruned = true }
    :: break
    od
}

/* ------------------------------------------------------------------ the properties */

/* At all times. */
proctype Always() {
end_always:
    if
    /* Never do both sides run: neither the processors nor a device of one, while any of the other does. */
    :: atomic { S_RUNS && D_RUNS -> BROKEN(never_two_running) }
    /* Nor one after the other, from the same moment: the guest would go back in time. */
    :: atomic { s_again && d_ran -> BROKEN(never_twice_from_one_moment) }
    /* No device of the destination runs before COMMITTED is on its disk. */
    :: atomic { D_RUNS && !(dj == COMMITTED || dj == RUNNING || dj == TOLD || pruned) -> BROKEN(none_runs_before_committed) }
    /* No device stands still while its neighbour may still start DMA to it. */
    :: atomic { (HALTED(sdev[0]) && CAN_DMA(sdev[1])) || (HALTED(sdev[1]) && CAN_DMA(sdev[0])) ||
                (HALTED(ddev[0]) && CAN_DMA(ddev[1])) || (HALTED(ddev[1]) && CAN_DMA(ddev[0])) -> BROKEN(p2p_barrier) }
    fi
}

/* When nothing can happen any more: both sides are back, the wire holds. */
proctype Finally() {
    timeout;
    if
    :: atomic { !s_lost && !d_lost && S_WHOLE + D_WHOLE != 1 -> BROKEN(one_runs_in_the_end) }
    :: atomic { d_lost && S_RUNS -> BROKEN(one_runs_in_the_end) }
    :: atomic { !d_lost && (SAVING(sdev[0]) || SAVING(sdev[1]) || SAVING(ddev[0]) || SAVING(ddev[1])) -> BROKEN(none_saves_in_the_end) }
    :: atomic { !d_lost && !D_WHOLE && !D_FREE -> BROKEN(runs_or_is_free) }
    :: atomic { !d_lost && !(s_lost && s_outlives) && (sj == BEGUN || sj == COMMITTED || dj == BEGUN || dj == LOADED || (dj == COMMITTED && !D_WHOLE)) -> BROKEN(journals_have_ended) }
    :: atomic { s_lost && !s_lost_early && !s_outlives && !d_emptied && unwritten == UNWRITTEN && !D_WHOLE -> BROKEN(committed_is_not_lost) }
    :: else
    fi
}

init {
    atomic {
        sdev[0] = Running; sdev[1] = Running; ddev[0] = Free; ddev[1] = Free;
        if :: s_outlives = true :: s_outlives = false fi;
        if :: d_outlives = true :: d_outlives = false fi;
        run Source(); run Destination(); run Weather(); run Always(); run Finally()
    }
}
