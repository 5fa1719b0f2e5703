// Transfers: how fast bytes get from a file to the device, and what live traffic sees of them.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <condition_variable>
#include <cstring>
#include <functional>
#include <mutex>

#include "probe.h"

static char* pinned(size_t bytes) {
  void* host;
  DRV(cuMemHostAlloc(&host, bytes, CU_MEMHOSTALLOC_PORTABLE));
  std::memset(host, 0x5a, bytes);
  return static_cast<char*>(host);
}
static CUdeviceptr on_device(size_t bytes) {
  CUdeviceptr device;
  DRV(cuMemAlloc(&device, bytes));
  return device;
}

// GB/s of copies of `slot` bytes, at most `flying` of them queued.
static double copies(size_t slot, int flying, bool up, CUdeviceptr device, char* host, size_t total) {
  CUstream stream = new_stream();
  std::vector<CUevent> done(flying);
  for (auto& event : done) DRV(cuEventCreate(&event, CU_EVENT_DISABLE_TIMING));
  std::vector<double> rates;
  for (int round = 0; round < 4; ++round) {
    auto began = Clock::now();
    size_t count = total / slot;
    for (size_t i = 0; i < count; ++i) {
      int at = i % flying;
      if (i >= size_t(flying)) DRV(cuEventSynchronize(done[at]));
      char* from = host + at * slot;
      CUdeviceptr to = device + i * slot;
      if (up) DRV(cuMemcpyHtoDAsync(to, from, slot, stream));
      else DRV(cuMemcpyDtoHAsync(from, to, slot, stream));
      DRV(cuEventRecord(done[at], stream));
    }
    DRV(cuStreamSynchronize(stream));
    if (round > 0) rates.push_back(count * slot / ms_since(began) / 1e6);
  }
  for (auto event : done) DRV(cuEventDestroy(event));
  DRV(cuStreamDestroy(stream));
  return median(rates);
}

void transfer_section() {
  enter();
  const size_t total = 2 * GIB_BYTES;
  char* host = pinned(512 * MIB_BYTES);
  CUdeviceptr device = on_device(total);
  for (size_t mib : {1, 2, 4, 8, 16, 64})
    for (int flying : {1, 2, 4, 8})
      figure("up, " + std::to_string(mib) + " MiB x " + std::to_string(flying) + " in flight",
             copies(mib * MIB_BYTES, flying, true, device, host, total), "GB/s");
  for (size_t mib : {1, 8, 64})
    figure("down, " + std::to_string(mib) + " MiB x 2 in flight",
           copies(mib * MIB_BYTES, 2, false, device, host, total), "GB/s");
  // What a library does that copies from where a file is mapped.
  std::vector<char> pageable(512 * MIB_BYTES, 1);
  auto began = Clock::now();
  for (int i = 0; i < 4; ++i) DRV(cuMemcpyHtoD(device, pageable.data(), pageable.size()));
  figure("up from pageable memory", 4.0 * pageable.size() / ms_since(began) / 1e6, "GB/s");
  // The latency of a small one, waited for.
  CUstream stream = new_stream();
  std::vector<double> took;
  for (int i = 0; i < 2000; ++i) {
    began = Clock::now();
    DRV(cuMemcpyHtoDAsync(device, host, 4096, stream));
    DRV(cuStreamSynchronize(stream));
    took.push_back(ms_since(began) * 1e3);
  }
  figure("4 KiB up and waited for, p50", median(took), "us");
}

// A file in the page cache, of values that do not compress.
static std::string big_file(size_t bytes) {
  const char* folder = std::getenv("PROBE_TMP");
  std::string path = std::string(folder ? folder : "/tmp") + "/probe.bin";
  int fd = open(path.c_str(), O_RDWR | O_CREAT, 0600);
  if (fd < 0) std::exit(1);
  if (lseek(fd, 0, SEEK_END) < off_t(bytes)) {
    std::vector<uint32_t> block(8 * MIB_BYTES / 4);
    uint32_t x = 12345;
    for (size_t at = 0; at < bytes; at += 8 * MIB_BYTES) {
      for (auto& word : block) word = x = x * 1664525u + 1013904223u;
      if (pwrite(fd, block.data(), 8 * MIB_BYTES, at) != ssize_t(8 * MIB_BYTES)) std::exit(1);
    }
  }
  close(fd);
  return path;
}

// Reads of `slot` bytes by so many threads, each block handed to `use(thread, block, buffer)`. GB/s.
static double read_by(int fd, size_t total, size_t slot, const std::vector<char*>& buffers,
                      const std::function<void(int, size_t, char*)>& use) {
  std::atomic<size_t> next{0};
  std::vector<std::thread> threads;
  auto began = Clock::now();
  for (size_t t = 0; t < buffers.size(); ++t)
    threads.emplace_back([&, t] {
      for (size_t block; (block = next++) < total / slot;) {
        if (pread(fd, buffers[t], slot, block * slot) != ssize_t(slot)) std::exit(1);
        use(int(t), block, buffers[t]);
      }
    });
  for (auto& thread : threads) thread.join();
  return total / ms_since(began) / 1e6;
}

constexpr size_t SLOT = 8 * MIB_BYTES;

// What a reader fills, and whether it sleeps until the copy before is done.
struct Slots {
  size_t bytes = SLOT;
  bool blocking = true;
};

// Readers, each with two pinned slots of its own, and copies on one stream. `limit` GB/s, 0 for none.
static double load_by(int readers, int fd, size_t total, CUdeviceptr device, char* ring, double limit,
                      Slots slots = {}) {
  CUstream stream = new_stream();
  std::atomic<size_t> next{0};
  std::mutex issuing;
  std::vector<std::thread> threads;
  auto began = Clock::now();
  for (int r = 0; r < readers; ++r)
    threads.emplace_back([&, r] {
      enter();
      CUevent done[2];
      unsigned flags = CU_EVENT_DISABLE_TIMING | (slots.blocking ? CU_EVENT_BLOCKING_SYNC : 0);
      for (auto& event : done) DRV(cuEventCreate(&event, flags));
      int turn = 0;
      for (size_t block; (block = next++) < total / slots.bytes; ++turn) {
        if (limit > 0)
          while (ms_since(began) < block * slots.bytes / limit / 1e6) std::this_thread::sleep_for(std::chrono::microseconds(50));
        char* slot = ring + (2 * r + turn % 2) * slots.bytes;
        if (turn >= 2) DRV(cuEventSynchronize(done[turn % 2]));
        if (pread(fd, slot, slots.bytes, block * slots.bytes) != ssize_t(slots.bytes)) std::exit(1);
        std::lock_guard<std::mutex> lock(issuing);
        DRV(cuMemcpyHtoDAsync(device + block * slots.bytes, slot, slots.bytes, stream));
        DRV(cuEventRecord(done[turn % 2], stream));
      }
      for (auto& event : done) {
        DRV(cuEventSynchronize(event));
        DRV(cuEventDestroy(event));
      }
    });
  for (auto& thread : threads) thread.join();
  DRV(cuStreamSynchronize(stream));
  double rate = total / ms_since(began) / 1e6;
  DRV(cuStreamDestroy(stream));
  return rate;
}

void load_section() {
  enter();
  const size_t total = 6 * GIB_BYTES;
  std::string path = big_file(total);
  int fd = open(path.c_str(), O_RDONLY);
  char* ring = pinned(32 * SLOT);
  CUdeviceptr device = on_device(total);
  auto slots = [&](int count) {
    std::vector<char*> all;
    for (int i = 0; i < count; ++i) all.push_back(ring + i * SLOT);
    return all;
  };
  auto nothing = [](int, size_t, char*) {};
  read_by(fd, total, SLOT, slots(8), nothing);  // into the page cache
  for (int threads : {1, 2, 4, 8, 12})
    figure("page cache to pinned, " + std::to_string(threads) + " readers",
           read_by(fd, total, SLOT, slots(threads), nothing), "GB/s");
  for (int threads : {1, 2, 4, 8, 12}) {
    load_by(threads, fd, total, device, ring, 0);
    figure("page cache to device, " + std::to_string(threads) + " readers",
           load_by(threads, fd, total, device, ring, 0), "GB/s");
  }
  // What was written is what is there.
  std::vector<char> back(SLOT), file(SLOT);
  DRV(cuMemcpyDtoH(back.data(), device + total - SLOT, SLOT));
  if (pread(fd, file.data(), SLOT, total - SLOT) != ssize_t(SLOT)) std::exit(1);
  word("the last block arrived", back == file ? "yes" : "NO");
  int direct = open(path.c_str(), O_RDONLY | O_DIRECT);
  if (direct < 0) {
    word("O_DIRECT", "refused");
    return;
  }
  fsync(fd);
  for (int threads : {1, 4, 8})
    figure("disk past the page cache, " + std::to_string(threads) + " readers",
           read_by(direct, total / 4, SLOT, slots(threads), nothing), "GB/s");
}

// Live traffic while a green version loads: at 60 % of what it could do, then as fast as it can.
void beside_section() {
  enter();
  const size_t total = 6 * GIB_BYTES;
  int fd = open(big_file(total).c_str(), O_RDONLY);
  char* ring = pinned(32 * SLOT);
  CUdeviceptr device = on_device(total);
  load_by(4, fd, total, device, ring, 0);
  double full;
  {
    Blue blue;
    std::this_thread::sleep_for(std::chrono::milliseconds(500));
    blue.tell("alone, one after the other,");
    full = median(blue.took);
  }
  for (double pace : {full / 0.6, 0.0}) {
    std::string how = pace > 0 ? "60 % load, " : "full load, ";
    for (double limit : {-1.0, 4.0, 8.0, 16.0, 0.0}) {
      Blue blue(pace);
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
      if (limit < 0) {
        std::this_thread::sleep_for(std::chrono::milliseconds(1000));
        blue.tell(how + "no load beside,");
        continue;
      }
      size_t part = limit > 0 ? size_t(limit * 1e9 * 0.7) / SLOT * SLOT : total;
      double rate = load_by(4, fd, std::min(part, total), device, ring, limit);
      std::string name = how + (limit > 0 ? std::to_string(int(limit)) + " GB/s" : std::string("unlimited")) + " beside,";
      figure(name + " loaded at", rate, "GB/s");
      blue.tell(name);
    }
  }
}

// Host memory for parked versions: what pinning costs, and what coming back takes.
void host_section() {
  enter();
  const size_t total = 8 * GIB_BYTES;
  CUdeviceptr device = on_device(total);
  CUstream stream = new_stream();
  auto began = Clock::now();
  void* host;
  DRV(cuMemHostAlloc(&host, total, CU_MEMHOSTALLOC_PORTABLE));
  figure("allocating 8 GiB pinned", ms_since(began), "ms");
  DRV(cuMemcpyDtoHAsync(host, device, total, stream));
  DRV(cuStreamSynchronize(stream));
  began = Clock::now();
  DRV(cuMemcpyHtoDAsync(device, host, total, stream));
  DRV(cuStreamSynchronize(stream));
  figure("8 GiB parked and back, one copy", total / ms_since(began) / 1e6, "GB/s");
  began = Clock::now();
  DRV(cuMemFreeHost(host));
  figure("freeing it", ms_since(began), "ms");
  void* plain = mmap(nullptr, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  madvise(plain, total, MADV_HUGEPAGE);
  std::vector<std::thread> touching;
  began = Clock::now();
  for (int t = 0; t < 8; ++t)
    touching.emplace_back([=] { std::memset(static_cast<char*>(plain) + t * (total / 8), 1, total / 8); });
  for (auto& thread : touching) thread.join();
  figure("touching 8 GiB of plain memory, 8 threads", ms_since(began), "ms");
  // Pinning holds up whoever talks to the driver: for how long, by the size of a piece, with a breath between two.
  for (size_t piece : {2048 * MIB_BYTES, 256 * MIB_BYTES, 32 * MIB_BYTES, 4 * MIB_BYTES, MIB_BYTES}) {
    std::string name = "in pieces of " + std::to_string(piece / MIB_BYTES) + " MiB,";
    const size_t part = std::min(total, 256 * piece);
    Blue registering;
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    began = Clock::now();
    for (size_t at = 0; at < part; at += piece) {
      DRV(cuMemHostRegister(static_cast<char*>(plain) + at, piece, CU_MEMHOSTREGISTER_PORTABLE));
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
    figure(name + " registering", part / ms_since(began) / 1e6, "GB/s");
    registering.tell(name + " live traffic beside registering");
    Blue unregistering;
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    began = Clock::now();
    for (size_t at = 0; at < part; at += piece) {
      DRV(cuMemHostUnregister(static_cast<char*>(plain) + at));
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
    figure(name + " unregistering", part / ms_since(began) / 1e6, "GB/s");
    unregistering.tell(name + " live traffic beside unregistering");
  }
  for (size_t piece : {512 * MIB_BYTES, 64 * MIB_BYTES, 8 * MIB_BYTES, MIB_BYTES}) {
    std::string name = std::to_string(piece / MIB_BYTES) + " MiB at a time,";
    Blue blue;
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    began = Clock::now();
    std::vector<void*> all(512 * MIB_BYTES / piece);
    for (auto& one : all) {
      DRV(cuMemHostAlloc(&one, piece, CU_MEMHOSTALLOC_PORTABLE));
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
    figure(name + " allocating 512 MiB pinned", ms_since(began), "ms");
    blue.tell(name + " live traffic beside it");
    for (auto one : all) DRV(cuMemFreeHost(one));
  }
}

// What slots, readers and ways to wait come to: files that lie in the page cache, and memory that is pinned already.
void staging_section() {
  enter();
  const size_t total = 4 * GIB_BYTES;
  std::string path = big_file(total);
  int fd = open(path.c_str(), O_RDONLY);
  char* ring = pinned(512 * MIB_BYTES);
  CUdeviceptr device = on_device(total);
  load_by(8, fd, total, device, ring, 0, {4 * MIB_BYTES, true});
  for (bool blocking : {true, false})
    for (size_t kib : {256, 512, 1024, 2048, 4096})
      for (int readers : {6, 8, 12, 16}) {
        std::vector<double> rates;
        for (int i = 0; i < 3; ++i) rates.push_back(load_by(readers, fd, total, device, ring, 0, {kib << 10, blocking}));
        figure(std::to_string(readers) + " readers, slots of " + std::to_string(kib) + " KiB, " +
                   (blocking ? "blocking" : "spinning"),
               median(rates), "GB/s");
      }
  // Copies of 1 MiB out of pinned memory, in lots of which two are in flight.
  for (bool blocking : {true, false})
    for (size_t lot : {4, 8, 16, 32}) {
      std::vector<double> rates;
      for (int round = 0; round < 3; ++round) {
        CUstream stream = new_stream();
        CUevent done[2];
        for (auto& event : done) DRV(cuEventCreate(&event, CU_EVENT_DISABLE_TIMING | (blocking ? CU_EVENT_BLOCKING_SYNC : 0)));
        auto began = Clock::now();
        for (size_t i = 0; i < total / MIB_BYTES; ++i) {
          DRV(cuMemcpyHtoDAsync(device + i * MIB_BYTES, ring + i % 512 * MIB_BYTES, MIB_BYTES, stream));
          if ((i + 1) % lot == 0) {
            std::swap(done[0], done[1]);
            DRV(cuEventRecord(done[0], stream));
            DRV(cuEventSynchronize(done[1]));
          }
        }
        DRV(cuStreamSynchronize(stream));
        rates.push_back(total / ms_since(began) / 1e6);
        for (auto event : done) DRV(cuEventDestroy(event));
        DRV(cuStreamDestroy(stream));
      }
      figure("pinned, lots of " + std::to_string(lot) + " MiB, " + (blocking ? "blocking" : "spinning"), median(rates), "GB/s");
    }
}
