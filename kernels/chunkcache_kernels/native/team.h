/* A team of threads that shares one piece of work at a time, and its parts by a counter.
 *
 * Where the process has GNU's OpenMP (torch brings it), the team is its threads: a second team beside
 * it would have to share the cores with members that spin for work. Else it has threads of its own.
 *
 * A part is taken by whoever is free, so that a member which the system has put to sleep delays at
 * most the part it holds. Members spin for a moment and then sleep: nothing here keeps a core busy
 * that another process could use. */
#ifndef CHUNKCACHE_TEAM_H
#define CHUNKCACHE_TEAM_H

#include <stdatomic.h>

typedef struct Team Team;
typedef void (*Work)(Team *team, int member, void *of);

/* libgomp's GOMP_parallel and omp_get_num_threads, as it is loaded; both NULL: own threads. */
typedef void (*Parallel)(void (*of)(void *), void *data, unsigned threads, unsigned flags);
typedef int (*CountThreads)(void);

Team *team_new(int members, Parallel parallel, CountThreads count_threads);
void team_free(Team *team);
int team_members(const Team *team);

/* How many members take part in the next pieces of work, at most: 1 to `team_members`. */
void team_use(Team *team, int members);

/* Runs `work` once on every member in use, the caller being member 0; returns when all are done. */
void team_run(Team *team, Work work, void *of);

/* Inside `work`: waits for all members in use. The counter of parts starts at 0 again behind it. */
void team_meet(Team *team, int member);

/* Inside `work`: the number of the next part that nobody has taken since the last meeting. */
int team_take(Team *team, int member);

#endif
