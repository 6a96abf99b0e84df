// What PyTorch lacks on a machine without a GPU to run autograd over fake CUDA tensors.
//
// 1. A device guard for DeviceType::CUDA that does nothing. A CPU-only libtorch registers none and aborts at the
//    first op that needs one; a CUDA libtorch registers one that needs a driver.
// 2. at::accelerator::isAccelerator and getAccelerator, interposed over libtorch_cpu's: the autograd engine asks them
//    for the device's current stream, which does not exist here.
//
// The library is opened RTLD_GLOBAL before `import torch`, so that its two functions come first in symbol resolution;
// memplan_install() is called after libc10 is loaded. See c10/core/impl/DeviceGuardImplInterface.h and
// torch/csrc/autograd/engine.cpp of PyTorch 2.11 to 2.14.
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <optional>

namespace {

struct FakeCudaGuard final : public c10::impl::DeviceGuardImplInterface {
  static c10::Device device() {
    return c10::Device(c10::DeviceType::CUDA, 0);
  }
  c10::DeviceType type() const override {
    return c10::DeviceType::CUDA;
  }
  c10::Device exchangeDevice(c10::Device) const override {
    return device();
  }
  c10::Device getDevice() const override {
    return device();
  }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const noexcept override {
    return c10::Stream(c10::Stream::DEFAULT, device());
  }
  c10::Stream getDefaultStream(c10::Device) const override {
    return c10::Stream(c10::Stream::DEFAULT, device());
  }
  c10::Stream getNewStream(c10::Device, int) const override {
    return c10::Stream(c10::Stream::DEFAULT, device());
  }
  c10::Stream exchangeStream(c10::Stream) const noexcept override {
    return c10::Stream(c10::Stream::DEFAULT, device());
  }
  c10::DeviceIndex deviceCount() const noexcept override {
    return 1;
  }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override {
    return true;
  }
  bool queryStream(const c10::Stream&) const override {
    return true;
  }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeDevice(const c10::DeviceIndex) const override {}
};

} // namespace

extern "C" __attribute__((visibility("default"))) void memplan_install() {
  static const FakeCudaGuard guard;
  c10::impl::device_guard_impl_registry[static_cast<size_t>(c10::DeviceType::CUDA)].store(&guard);
}

namespace at::accelerator {

__attribute__((visibility("default"))) bool isAccelerator(c10::DeviceType) {
  return false;
}

__attribute__((visibility("default"))) std::optional<c10::DeviceType> getAccelerator(bool) {
  return std::nullopt;
}

} // namespace at::accelerator
