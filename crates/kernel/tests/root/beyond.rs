use kernel::netns::Netns;
use kernel::rtnl::Rtnl;

use crate::scratch::Scratch;

#[test]
fn namespace_when_only_a_link_leads_there_then_its_addresses_are_seen_and_not_our_own() {
    let (here, there, stranger) = (Scratch::empty(), Scratch::empty(), Scratch::empty());
    let far = there.path();
    let far = far.file_name().unwrap().to_str().unwrap();
    here.ip(&format!("link add door type veth peer name in0 netns {far}"));
    here.ip("link add both type veth peer name ends");
    here.ip("address add 192.0.2.1/24 dev door");
    there.ip("address add 192.0.2.2/24 dev in0");
    there.ip("link set in0 up");
    there.ip("address add 2001:db8::2/64 dev in0 nodad");

    let netns = |scratch: &Scratch| Netns::open(scratch.path()).unwrap();
    let (home, beyond) = (netns(&here), netns(&there));
    use std::os::fd::AsFd;
    let mut rtnl = Rtnl::open_in(home.as_fd()).unwrap();
    let doors = rtnl.doorways().unwrap();
    let names: Vec<&str> = doors.iter().map(|(link, _)| link.name.as_str()).collect();
    assert_eq!(names, ["door"]);
    let id = doors[0].1;
    assert_eq!(rtnl.number_of(beyond.as_fd()).unwrap(), Some(id));
    assert_eq!(rtnl.number_of(netns(&stranger).as_fd()).unwrap(), None);

    let list = |found: Vec<kernel::rtnl::ObservedAddress>| {
        let mut found: Vec<String> = found.iter().map(|a| a.address.to_string()).collect();
        found.retain(|a| a.starts_with("192.0.2.") || a.starts_with("2001:"));
        found.sort();
        found
    };
    assert_eq!(
        list(rtnl.addresses_beyond(id).unwrap()),
        ["192.0.2.2/24", "2001:db8::2/64"]
    );
    assert_eq!(list(rtnl.all_addresses().unwrap()), ["192.0.2.1/24"]);
    assert!(rtnl.addresses_beyond(id + 1000).is_err());
}
