//! Sees the block requests of existing devices by a program in the kernel.
mod kernel;

#[cfg(test)]
mod tests {
    use super::kernel::*;
    #[test]
    fn loads() {
        let (kernel, _rings) = Kernel::load(1 << 20, 65536, 100_000).unwrap();
        kernel.attach().unwrap();
        assert!(kernel.mark(7).unwrap());
        println!("{:?} {:?}", kernel.counts(), kernel.flights());
    }
}
