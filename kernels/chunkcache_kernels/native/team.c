#define _GNU_SOURCE
#include "team.h"

#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SPINS 800 /* some tens of microseconds: longer than a meeting of members that all run */

struct Team {
    int members;
    int wanted;         /* members that are to take part */
    _Atomic int in_use; /* and those that do */
    Parallel parallel;  /* of the process's OpenMP, or NULL: threads of our own */
    CountThreads count_threads;
    _Atomic int joined;
    Work work;
    void *of;
    pthread_t *threads;
    _Atomic int stopping;
    _Atomic int sleepers;
    _Alignas(64) _Atomic uint32_t round; /* counts pieces of work; members wait for it to change */
    _Alignas(64) _Atomic int running;    /* members that have not ended this piece yet */
    _Alignas(64) _Atomic int arrived;
    _Alignas(64) _Atomic uint32_t meeting; /* counts meetings */
    _Alignas(64) _Atomic int next[2];      /* of parts; the other one is set to 0 at a meeting */
};

typedef struct {
    Team *team;
    int member;
} Place;

static void rest(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void wait_while(Team *team, _Atomic uint32_t *number, uint32_t value) {
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load_explicit(number, memory_order_acquire) != value) return;
        rest();
    }
    atomic_fetch_add(&team->sleepers, 1);
    while (atomic_load(number) == value)
        syscall(SYS_futex, number, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
    atomic_fetch_sub(&team->sleepers, 1);
}

/* Who sleeps has said so before it looked at the number for the last time: none is left asleep. */
static void change(Team *team, _Atomic uint32_t *number) {
    atomic_fetch_add(number, 1);
    if (atomic_load(&team->sleepers))
        syscall(SYS_futex, number, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
}

static void *member_loop(void *of) {
    Place place = *(Place *)of;
    free(of);
    Team *team = place.team;
    uint32_t seen = 0;
    for (;;) {
        wait_while(team, &team->round, seen);
        seen = atomic_load_explicit(&team->round, memory_order_acquire);
        if (atomic_load(&team->stopping)) return NULL;
        if (place.member < team->in_use) team->work(team, place.member, team->of);
        /* said by those not in use too: none may still be waking up when the next piece begins */
        atomic_fetch_sub_explicit(&team->running, 1, memory_order_acq_rel);
    }
}

Team *team_new(int members, Parallel parallel, CountThreads count_threads) {
    Team *team = aligned_alloc(64, (sizeof(Team) + 63) / 64 * 64);
    if (!team) return NULL;
    memset(team, 0, sizeof(Team));
    team->members = team->wanted = 1;
    if (parallel && count_threads) {
        team->parallel = parallel;
        team->count_threads = count_threads;
        team->members = team->wanted = members;
        return team;
    }
    team->threads = calloc((size_t)members, sizeof(pthread_t));
    for (int member = 1; team->threads && member < members; member++) {
        Place *place = malloc(sizeof(Place));
        if (!place) break;
        *place = (Place){team, member};
        if (pthread_create(&team->threads[member], NULL, member_loop, place)) {
            free(place);
            break;
        }
        team->members = team->wanted = member + 1;
    }
    return team;
}

void team_free(Team *team) {
    atomic_store(&team->stopping, 1);
    change(team, &team->round);
    for (int member = 1; team->threads && member < team->members; member++)
        pthread_join(team->threads[member], NULL);
    free(team->threads);
    free(team);
}

int team_members(const Team *team) { return team->members; }

void team_use(Team *team, int members) {
    team->wanted = members < 1 ? 1 : members > team->members ? team->members : members;
}

/* A member in OpenMP's threads: as many as there are take part, each says the same number. */
static void join(void *of) {
    Team *team = of;
    atomic_store(&team->in_use, team->count_threads());
    team->work(team, atomic_fetch_add(&team->joined, 1), team->of);
}

void team_run(Team *team, Work work, void *of) {
    team->work = work;
    team->of = of;
    atomic_store(&team->next[0], 0);
    atomic_store(&team->next[1], 0);
    if (team->parallel && team->wanted > 1) {
        atomic_store(&team->joined, 0);
        team->parallel(join, team, (unsigned)team->wanted, 0);
        return;
    }
    atomic_store(&team->in_use, team->wanted);
    atomic_store(&team->running, team->wanted > 1 ? team->members - 1 : 0);
    if (team->wanted > 1) change(team, &team->round);
    work(team, 0, of);
    for (int i = 0; atomic_load_explicit(&team->running, memory_order_acquire); i++) {
        if (i < SPINS) rest();
        else usleep(20);
    }
}

void team_meet(Team *team, int member) {
    (void)member;
    uint32_t meeting = atomic_load_explicit(&team->meeting, memory_order_acquire);
    if (atomic_fetch_add_explicit(&team->arrived, 1, memory_order_acq_rel) + 1 == team->in_use) {
        atomic_store(&team->arrived, 0);
        atomic_store(&team->next[meeting & 1], 0); /* the one in use until now; nobody takes */
        change(team, &team->meeting);
    } else {
        wait_while(team, &team->meeting, meeting);
    }
}

int team_take(Team *team, int member) {
    (void)member;
    uint32_t meeting = atomic_load_explicit(&team->meeting, memory_order_relaxed);
    return atomic_fetch_add_explicit(&team->next[meeting & 1], 1, memory_order_relaxed);
}
