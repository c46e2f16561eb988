//! What an ADD made: interfaces, addresses, routes, DNS; read and printed in the shape of each version of the protocol.

use std::net::IpAddr;

use fabric::object::Family;
use ipnet::IpNet;
use serde_json::{Map, Value};

use crate::failure::Failure;
use crate::json::{FieldError, JsonObject};
use crate::ordered::Ordered;

/// A result in no version: the newest shape, which holds what all others do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AddResult {
    /// Links, of the host and of the container.
    pub interfaces: Vec<Interface>,
    /// Addresses.
    pub ips: Vec<IpConfig>,
    /// Routes.
    pub routes: Vec<Route>,
    /// Resolver settings.
    pub dns: Dns,
}

/// A link.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Hardware address as text; empty when not known.
    pub mac: String,
    /// MTU in bytes; 0 when not told. From 1.1.0 on.
    pub mtu: i64,
    /// Path of the namespace it is in; empty for the host's.
    pub sandbox: String,
    /// From 1.1.0 on; not ours, carried along.
    pub socket_path: String,
    /// From 1.1.0 on; not ours, carried along.
    pub pci_id: String,
}

/// An address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpConfig {
    /// Index into the interfaces.
    pub interface: Option<i64>,
    /// Address and prefix length of its network.
    pub address: IpNet,
    /// Gateway of that network.
    pub gateway: Option<IpAddr>,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Destination, host bits as given.
    pub dst: IpNet,
    /// Next hop; absent means the gateway of the family.
    pub gw: Option<IpAddr>,
    /// Path MTU in bytes; 0 is none.
    pub mtu: i64,
    /// Advertised TCP segment size in bytes; 0 is none.
    pub advmss: i64,
    /// Metric; 0 is the kernel's default.
    pub priority: i64,
    /// Routing table.
    pub table: Option<i64>,
    /// Scope (`rtm_scope`).
    pub scope: Option<i64>,
}

impl Route {
    /// A route with nothing but a destination and perhaps a next hop.
    pub fn to(dst: IpNet, gw: Option<IpAddr>) -> Route {
        Route {
            dst,
            gw,
            mtu: 0,
            advmss: 0,
            priority: 0,
            table: None,
            scope: None,
        }
    }

    /// Reads a route object.
    ///
    /// # Errors
    ///
    /// The field that is wrong.
    pub fn parse(object: &JsonObject<'_>) -> Result<Route, FieldError> {
        let Some(dst) = object.cidr("dst")? else {
            return Err(object.wrong("dst", &Value::Null, "a CIDR such as \"10.0.0.0/8\""));
        };
        Ok(Route {
            dst,
            gw: object.ip("gw")?,
            mtu: object.whole("mtu")?.unwrap_or(0),
            advmss: object.whole("advmss")?.unwrap_or(0),
            priority: object.whole("priority")?.unwrap_or(0),
            table: object.whole("table")?,
            scope: object.whole("scope")?,
        })
    }

    /// The route as a JSON object.
    pub fn to_ordered(&self) -> Ordered {
        let mut fields = vec![("dst", Ordered::text(self.dst.to_string()))];
        push_ip(&mut fields, "gw", self.gw);
        for (name, number) in [
            ("mtu", self.mtu),
            ("advmss", self.advmss),
            ("priority", self.priority),
        ] {
            push_number(&mut fields, name, Some(number).filter(|n| *n != 0));
        }
        push_number(&mut fields, "table", self.table);
        push_number(&mut fields, "scope", self.scope);
        Ordered::Object(fields)
    }

    /// The route as a value of a configuration.
    pub fn to_value(&self) -> Value {
        let mut map = Map::new();
        map.insert("dst".to_owned(), Value::from(self.dst.to_string()));
        if let Some(gw) = self.gw {
            map.insert("gw".to_owned(), Value::from(gw.to_string()));
        }
        for (name, number) in [
            ("mtu", self.mtu),
            ("advmss", self.advmss),
            ("priority", self.priority),
        ] {
            if number != 0 {
                map.insert(name.to_owned(), Value::from(number));
            }
        }
        for (name, number) in [("table", self.table), ("scope", self.scope)] {
            if let Some(number) = number {
                map.insert(name.to_owned(), Value::from(number));
            }
        }
        Value::Object(map)
    }
}

/// Resolver settings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dns {
    /// Name servers in order.
    pub nameservers: Vec<String>,
    /// Local domain; empty is none.
    pub domain: String,
    /// Search list.
    pub search: Vec<String>,
    /// Resolver options.
    pub options: Vec<String>,
}

impl Dns {
    /// Reads a `dns` object.
    ///
    /// # Errors
    ///
    /// The field that is wrong.
    pub fn parse(object: &JsonObject<'_>) -> Result<Dns, FieldError> {
        Ok(Dns {
            nameservers: object.strings("nameservers")?,
            domain: object.string("domain")?.unwrap_or_default().to_owned(),
            search: object.strings("search")?,
            options: object.strings("options")?,
        })
    }

    /// Nothing is set.
    pub fn is_empty(&self) -> bool {
        *self == Dns::default()
    }

    fn to_ordered(&self) -> Ordered {
        let mut fields = Vec::new();
        push_texts(&mut fields, "nameservers", &self.nameservers);
        push_text(&mut fields, "domain", &self.domain);
        push_texts(&mut fields, "search", &self.search);
        push_texts(&mut fields, "options", &self.options);
        Ordered::Object(fields)
    }
}

/// The three shapes results have had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// 0.1.0 and 0.2.0: one block per family.
    Blocks,
    /// 0.3.0 to 0.4.0: lists; addresses carry their family.
    Lists,
    /// 1.0.0 and 1.1.0.
    Current,
}

fn shape(version: &str) -> Option<Shape> {
    match version {
        "" | "0.1.0" | "0.2.0" => Some(Shape::Blocks),
        "0.3.0" | "0.3.1" | "0.4.0" => Some(Shape::Lists),
        "1.0.0" | "1.1.0" => Some(Shape::Current),
        _ => None,
    }
}

/// The result's own version; one that names none has its configuration's.
pub fn version_of(result: &Value, config_version: &str) -> String {
    let own = JsonObject::of(result)
        .ok()
        .and_then(|o| o.string("cniVersion").ok().flatten().map(str::to_owned));
    match own {
        Some(version) if !version.is_empty() => version,
        _ if config_version.is_empty() => "0.1.0".to_owned(),
        _ => config_version.to_owned(),
    }
}

impl AddResult {
    /// Reads a result of the given version.
    ///
    /// # Errors
    ///
    /// The field that is wrong.
    pub fn parse(result: &Value, version: &str) -> Result<AddResult, Failure> {
        let Some(shape) = shape(version) else {
            return Err(Failure::internal(format!(
                "unsupported CNI result version {version:?}"
            )));
        };
        let read = || {
            let object = JsonObject::of(result)?;
            match shape {
                Shape::Blocks => read_blocks(&object),
                Shape::Lists | Shape::Current => read_lists(&object),
            }
        };
        read().map_err(|e| Failure::internal(e.to_string()))
    }

    /// Reads the `prevResult` of a configuration, which must be of the configuration's family of versions.
    ///
    /// # Errors
    ///
    /// Another family's version, or a field that is wrong.
    pub fn parse_previous(previous: &Value, config_version: &str) -> Result<AddResult, Failure> {
        let own = version_of(previous, config_version);
        let wanted = shape(config_version);
        if shape(&own) != wanted {
            let family = match wanted {
                Some(Shape::Blocks) | None => "[ 0.1.0 0.2.0]",
                Some(Shape::Lists) => "[0.3.0 0.3.1 0.4.0]",
                Some(Shape::Current) => "[1.0.0 1.1.0]",
            };
            return Err(Failure::internal(format!(
                "could not parse prevResult: result type supports {family} but unmarshalled CNIVersion is {own:?}"
            )));
        }
        AddResult::parse(previous, &own)
            .map_err(|e| Failure::internal(format!("could not parse prevResult: {e}")))
    }

    /// The result as text in the shape of a version.
    ///
    /// # Errors
    ///
    /// A version that has no shape for it.
    pub fn print(&self, version: &str) -> Result<String, Failure> {
        let version = if version.is_empty() { "0.1.0" } else { version };
        let tree = match shape(version) {
            Some(Shape::Blocks) => self.to_blocks(version)?,
            Some(Shape::Lists) => self.to_lists(version, Shape::Lists),
            Some(Shape::Current) => self.to_lists(version, Shape::Current).sorted(),
            None => {
                return Err(Failure::internal(format!(
                    "no converter for CNI result version 1.1.0 to {version}"
                )));
            }
        };
        Ok(tree.indented())
    }

    fn to_lists(&self, version: &str, shape: Shape) -> Ordered {
        let mut fields = vec![("cniVersion", Ordered::text(version))];
        push_list(
            &mut fields,
            "interfaces",
            self.interfaces.iter().map(|i| i.to_ordered(shape)),
        );
        push_list(&mut fields, "ips", self.ips.iter().map(|ip| ip.to_ordered(shape)));
        push_list(&mut fields, "routes", self.routes.iter().map(Route::to_ordered));
        if shape == Shape::Lists || !self.dns.is_empty() {
            fields.push(("dns", self.dns.to_ordered()));
        }
        Ordered::Object(fields)
    }

    fn to_blocks(&self, version: &str) -> Result<Ordered, Failure> {
        let mut fields = vec![("cniVersion", Ordered::text(version))];
        for (family, name) in [(Family::V4, "ip4"), (Family::V6, "ip6")] {
            let Some(ip) = self.ips.iter().find(|ip| Family::of_net(ip.address) == family) else {
                continue;
            };
            let mut block = vec![("ip", Ordered::text(ip.address.to_string()))];
            push_ip(&mut block, "gateway", ip.gateway);
            let routes = self.routes.iter().filter(|r| Family::of_net(r.dst) == family);
            push_list(
                &mut block,
                "routes",
                routes.map(|r| Route::to(r.dst, r.gw).to_ordered()),
            );
            fields.push((name, Ordered::Object(block)));
        }
        if fields.len() == 1 {
            return Err(Failure::internal("cannot convert: no valid IP addresses"));
        }
        fields.push(("dns", self.dns.to_ordered()));
        Ok(Ordered::Object(fields))
    }
}

impl Interface {
    fn to_ordered(&self, shape: Shape) -> Ordered {
        let mut fields = vec![("name", Ordered::text(&self.name))];
        push_text(&mut fields, "mac", &self.mac);
        push_text(&mut fields, "sandbox", &self.sandbox);
        if shape == Shape::Current {
            push_number(&mut fields, "mtu", Some(self.mtu).filter(|mtu| *mtu != 0));
            push_text(&mut fields, "socketPath", &self.socket_path);
            push_text(&mut fields, "pciID", &self.pci_id);
        }
        Ordered::Object(fields)
    }
}

impl IpConfig {
    fn to_ordered(&self, shape: Shape) -> Ordered {
        let mut fields = Vec::new();
        if shape == Shape::Lists {
            fields.push((
                "version",
                Ordered::text(if self.address.addr().is_ipv4() { "4" } else { "6" }),
            ));
        }
        push_number(&mut fields, "interface", self.interface);
        fields.push(("address", Ordered::text(self.address.to_string())));
        push_ip(&mut fields, "gateway", self.gateway);
        Ordered::Object(fields)
    }
}

fn read_lists(object: &JsonObject<'_>) -> Result<AddResult, FieldError> {
    let interface = |o: &JsonObject<'_>| {
        let text = |name: &str| Ok(o.string(name)?.unwrap_or_default().to_owned());
        Ok(Interface {
            name: text("name")?,
            mac: text("mac")?,
            mtu: o.whole("mtu")?.unwrap_or(0),
            sandbox: text("sandbox")?,
            socket_path: text("socketPath")?,
            pci_id: text("pciID")?,
        })
    };
    let ip = |o: &JsonObject<'_>| {
        let Some(address) = o.cidr("address")? else {
            return Err(o.wrong("address", &Value::Null, "a CIDR such as \"10.0.0.1/8\""));
        };
        Ok(IpConfig {
            interface: o.whole("interface")?,
            address,
            gateway: o.ip("gateway")?,
        })
    };
    Ok(AddResult {
        interfaces: object
            .objects("interfaces")?
            .iter()
            .map(interface)
            .collect::<Result<_, FieldError>>()?,
        ips: object
            .objects("ips")?
            .iter()
            .map(ip)
            .collect::<Result<_, FieldError>>()?,
        routes: object
            .objects("routes")?
            .iter()
            .map(Route::parse)
            .collect::<Result<_, FieldError>>()?,
        dns: Dns::parse(&object.object("dns")?)?,
    })
}

fn read_blocks(object: &JsonObject<'_>) -> Result<AddResult, FieldError> {
    let mut result = AddResult {
        dns: Dns::parse(&object.object("dns")?)?,
        ..AddResult::default()
    };
    for name in ["ip4", "ip6"] {
        let block = object.object(name)?;
        if block.map().is_none() {
            continue;
        }
        let Some(address) = block.cidr("ip")? else {
            return Err(block.wrong("ip", &Value::Null, "a CIDR such as \"10.0.0.1/8\""));
        };
        result.ips.push(IpConfig {
            interface: None,
            address,
            gateway: block.ip("gateway")?,
        });
        for route in block.objects("routes")? {
            result.routes.push(Route::parse(&route)?);
        }
    }
    Ok(result)
}

type Pairs = Vec<(&'static str, Ordered)>;

fn push_text(fields: &mut Pairs, name: &'static str, text: &str) {
    if !text.is_empty() {
        fields.push((name, Ordered::text(text)));
    }
}

fn push_texts(fields: &mut Pairs, name: &'static str, texts: &[String]) {
    push_list(fields, name, texts.iter().map(Ordered::text));
}

fn push_number(fields: &mut Pairs, name: &'static str, number: Option<i64>) {
    if let Some(number) = number {
        fields.push((name, Ordered::Number(number)));
    }
}

fn push_ip(fields: &mut Pairs, name: &'static str, ip: Option<IpAddr>) {
    if let Some(ip) = ip {
        fields.push((name, Ordered::text(ip.to_string())));
    }
}

fn push_list(fields: &mut Pairs, name: &'static str, items: impl Iterator<Item = Ordered>) {
    let items: Vec<Ordered> = items.collect();
    if !items.is_empty() {
        fields.push((name, Ordered::List(items)));
    }
}

#[cfg(test)]
mod tests;
