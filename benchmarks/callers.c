// SPDX-License-Identifier: MIT
/*
 * Peers of the Python probe: a C program that calls the same stub, and (as a shared object) the
 * two functions of a library in the manner of libstapsdt, for ctypes.
 *
 * The program: callers STUB FUNCTION SEMAPHORE.  It prints "ready", and for each line "N" of
 * standard input the nanoseconds that N checked calls took; for "?" whether somebody listens.
 */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

typedef struct {
    const volatile uint16_t *semaphore;
    void (*function)(uint64_t, uint64_t);
} Peer;

int peer_enabled(const Peer *peer)
{
    return *peer->semaphore != 0;
}

void peer_fire(const Peer *peer, uint64_t a, uint64_t b)
{
    peer->function(a, b);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

int main(int argc, char **argv)
{
    void *stub = argc == 4 ? dlopen(argv[1], RTLD_NOW | RTLD_LOCAL) : NULL;
    if (stub == NULL)
        return 2;
    Peer peer;
    *(void **)&peer.function = dlsym(stub, argv[2]);
    peer.semaphore = dlsym(stub, argv[3]);
    if (peer.function == NULL || peer.semaphore == NULL)
        return 2;
    puts("ready");
    fflush(stdout);
    char line[32];
    while (fgets(line, sizeof line, stdin) != NULL) {
        if (line[0] == '?') {
            printf("%d\n", peer_enabled(&peer));
            fflush(stdout);
            continue;
        }
        const long count = strtol(line, NULL, 10);
        const double start = now();
        for (long i = 0; i < count; i++)
            if (__builtin_expect(*peer.semaphore, 0))
                peer.function(1, 2);
        printf("%.1f\n", now() - start);
        fflush(stdout);
    }
    return 0;
}
