// A team of threads that compute one step together: each takes its share of the rows, then all meet.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

constexpr int GROUP = 16;   // rows that are not divided between workers
constexpr int SPIN = 2000;  // looks at the others before a worker sleeps: some tens of microseconds

inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Where workers wait for each other: a short spin, then sleep. To spin for long would be faster on an idle machine and
// a hundred times slower on a busy one, where the thread that is waited for may need this very core.
struct Barrier {
    std::atomic<int> arrived{0};
    std::atomic<uint32_t> round{0};

    void wait(int workers) {
        const uint32_t now = round.load(std::memory_order_relaxed);
        if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == workers) {
            arrived.store(0, std::memory_order_relaxed);
            round.fetch_add(1, std::memory_order_release);
            round.notify_all();
            return;
        }
        for (int i = 0; i < SPIN; i++) {
            if (round.load(std::memory_order_acquire) != now) return;
            relax();
        }
        round.wait(now, std::memory_order_acquire);
    }
};

// Who computes: a thread of the team, and the memory of its own.
struct Worker {
    int index, count;
    float* scratch;
    Barrier& meeting;

    void wait() const { meeting.wait(count); }

    // This worker's share of `total` things, as [first, last).
    void share(int64_t total, int64_t& first, int64_t& last) const {
        first = total * index / count;
        last = total * (index + 1) / count;
    }

    // The same of a matrix's rows, in whole groups: alike for every format.
    void share_rows(int rows, int& first, int& last) const {
        int64_t a, b;
        share((rows + GROUP - 1) / GROUP, a, b);
        first = std::min<int64_t>(rows, a * GROUP);
        last = std::min<int64_t>(rows, b * GROUP);
    }
};
