// Compiled once, for every CPU: nothing that an instruction set's files define may have a name that others share.
#include <chrono>
#include <thread>

namespace normkit {

namespace {

// A moment in which a core does nothing, so that its other hardware thread has it to itself.
void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("isb");
#endif
}

}  // namespace

void wait_for_others(int times) {
    constexpr int kSpin = 4000, kYield = 5000;  // about 50 us, then about a millisecond
    if (times <= kSpin) pause();
    else if (times <= kYield) std::this_thread::yield();
    else std::this_thread::sleep_for(std::chrono::microseconds(20));
}

}  // namespace normkit
