/**
 * Opens connections to checked addresses only. A name is looked up once per connection, all its addresses are judged, and
 * the socket tries exactly those: a second answer of the name server (DNS rebinding) is never asked for.
 */
import type { LookupAddress, LookupAllOptions } from "node:dns";
import { isIP, type LookupFunction } from "node:net";
import { buildConnector } from "undici";
import { type Cidr, permitted } from "./addresses.ts";
import { EgressFailed, EgressRefused } from "./errors.ts";

/** `dns.lookup` as it is with `all: true`. */
export type Lookup = (
  hostname: string,
  options: LookupAllOptions,
  callback: (error: NodeJS.ErrnoException | null, addresses: LookupAddress[]) => void,
) => void;

/** A connection that takes longer is given up, so that a dead host holds no socket for long. */
const connectTimeoutMs = 10_000;
/** Before the next address of a name is tried. */
const perAddressMs = 1000;

/** undici's connector with the guard around it. Its errors are `EgressRefused`, or what Node gives. */
export function guardedConnector(allow: readonly Cidr[], lookup: Lookup): buildConnector.connector {
  const resolve = coalesced(lookup);
  const guardedLookup: LookupFunction = (hostname, options, callback) => {
    resolve(hostname).then(
      (found) => {
        if (found.length === 0) return callback(new EgressFailed(hostname, "ENOTFOUND"), "");
        if (!found.every(({ address }) => permitted(address, allow))) return callback(refusal(hostname), "");
        if (options.all) callback(null, found);
        else callback(null, found[0]!.address, found[0]!.family);
      },
      (error) => callback(error, ""),
    );
  };
  const connect = buildConnector({
    lookup: guardedLookup,
    autoSelectFamily: true,
    autoSelectFamilyAttemptTimeout: perAddressMs,
    timeout: connectTimeoutMs,
    allowH2: false,
  });
  return (target, callback) => {
    // An IP literal is connected to without any look-up, so it is judged here.
    if (isIP(target.hostname) && !permitted(target.hostname, allow)) {
      process.nextTick(callback, refusal(target.hostname), null);
      return;
    }
    connect(target, (...[error, socket]) => {
      if (error) return callback(error, null);
      // `0.0.0.0` and what a routing table does to an address show only now.
      if (socket.remoteAddress === undefined || !permitted(socket.remoteAddress, allow)) {
        socket.destroy();
        return callback(refusal(target.hostname), null);
      }
      callback(null, socket);
    });
  };
}

function refusal(host: string): EgressRefused {
  return new EgressRefused(`${host} is refused: it leads to a private or reserved address`);
}

/**
 * One look-up per name at a time. `dns.lookup` holds a thread of a pool of four; without this, one name whose server never
 * answers would hold them all and stop the look-ups of every other host.
 */
function coalesced(lookup: Lookup): (hostname: string) => Promise<LookupAddress[]> {
  const underWay = new Map<string, Promise<LookupAddress[]>>();
  return (hostname) => {
    const known = underWay.get(hostname);
    if (known) return known;
    const { promise, resolve, reject } = Promise.withResolvers<LookupAddress[]>();
    underWay.set(hostname, promise);
    lookup(hostname, { all: true }, (error, addresses) => {
      underWay.delete(hostname);
      if (error) reject(error);
      else resolve(addresses);
    });
    return promise;
  };
}
