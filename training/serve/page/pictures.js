/**
 * Pictures that a user brings: read, turned upright, made small enough, and kept in this browser under their digest.
 *
 * The server takes pictures as they lie in a file: without turning them by EXIF, as the boxes of a dataset are in stored
 * pixels. So a turned JPEG, and whatever is no JPEG, is drawn anew here, on white. A plain JPEG goes out byte by byte.
 */

import { Trouble } from "./api.js";

/** Bytes of a file that are read at all, and of one that is sent as it is. */
export const MOST_BYTES = 64 << 20;
const SENT_BYTES = 6 << 20;
const SENT_SIDE = 2048;
const KEPT = 40;

const known = new Map();

/** A picture of a file, kept: {key, blob, url, width, height}; `url` shows it here. Throws as `prepared` does. */
export async function take(file) {
  const blob = await prepared(file);
  const made = await measured(await digest(blob), blob);
  known.set(made.key, made);
  store((pictures) => pictures.put({ key: made.key, blob, at: Date.now() }));
  return made;
}

/** A file as it is sent: upright, JPEG, not too large. Throws Trouble "wrong" or "big", with the file's name. */
export async function prepared(file) {
  const name = file.name || "?";
  if (file.size > MOST_BYTES) throw new Trouble("big", name);
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { imageOrientation: "from-image" });
  } catch {
    throw new Trouble("wrong", name);
  }
  const plain = file.type === "image/jpeg" && file.size <= SENT_BYTES && Math.max(bitmap.width, bitmap.height) <= 2 * SENT_SIDE;
  const upright = plain && (await orientation(file)) === 1;
  const blob = upright ? file.slice(0, file.size, "image/jpeg") : await redrawn(bitmap);
  bitmap.close();
  return blob;
}

/** The picture of this key, or null where this browser has none. */
export async function recall(key) {
  if (known.has(key)) return known.get(key);
  const kept = await store((pictures) => pictures.get(key));
  if (!kept?.blob) return null;
  const made = await measured(key, kept.blob).catch(() => null);
  if (made) known.set(key, made);
  return made;
}

/** A picture as a data URI. */
export function dataUri(picture) {
  return new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => failed(new Trouble("wrong", picture.key));
    reader.readAsDataURL(picture.blob);
  });
}

async function measured(key, blob) {
  const bitmap = await createImageBitmap(blob);
  const { width, height } = bitmap;
  bitmap.close();
  return { key, blob, url: URL.createObjectURL(blob), width, height };
}

async function redrawn(bitmap) {
  const scale = Math.min(1, SENT_SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.93));
}

/** EXIF orientation of a JPEG, 1 to 8; 1 where it says none (Exif 2.32, 4.6.2). */
async function orientation(file) {
  const view = new DataView(await file.slice(0, 256 << 10).arrayBuffer());
  const size = view.byteLength;
  let at = 2;
  while (at + 4 <= size && view.getUint8(at) === 0xff) {
    const marker = view.getUint8(at + 1);
    const length = view.getUint16(at + 2);
    if (marker === 0xda || length < 2) return 1;
    if (marker === 0xe1 && at + 18 <= size && view.getUint32(at + 4) === 0x45786966) {
      const tiff = at + 10;
      const little = view.getUint16(tiff) === 0x4949;
      const directory = tiff + view.getUint32(tiff + 4, little);
      if (directory + 2 > size) return 1;
      const entries = view.getUint16(directory, little);
      for (let i = 0; i < entries && directory + 14 + 12 * i <= size; i++) {
        const entry = directory + 2 + 12 * i;
        if (view.getUint16(entry, little) === 0x0112) return view.getUint16(entry + 8, little);
      }
      return 1;
    }
    at += 2 + length;
  }
  return 1;
}

/** A name for bytes: SHA-256 where the browser offers it (https and this machine), else FNV-1a, twice. */
async function digest(blob) {
  const bytes = await blob.arrayBuffer();
  const hex = (number, places) => number.toString(16).padStart(places, "0");
  if (crypto.subtle) {
    const sum = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
    return Array.from(sum.slice(0, 8), (byte) => hex(byte, 2)).join("");
  }
  let [one, two] = [0x811c9dc5, 0x01000193];
  for (const byte of new Uint8Array(bytes)) {
    one = Math.imul(one ^ byte, 0x01000193) >>> 0;
    two = Math.imul(two ^ byte, 0x85ebca6b) >>> 0;
  }
  return hex(one, 8) + hex(two, 8);
}

/** Do `work` on the browser's store of pictures; null where there is none (private windows). The oldest go. */
function store(work) {
  return new Promise((done) => {
    let opening;
    try {
      opening = indexedDB.open("wenlan", 1);
    } catch {
      return done(null);
    }
    opening.onupgradeneeded = () => opening.result.createObjectStore("pictures", { keyPath: "key" }).createIndex("at", "at");
    opening.onerror = opening.onblocked = () => done(null);
    opening.onsuccess = () => {
      const base = opening.result;
      const turn = base.transaction("pictures", "readwrite");
      const pictures = turn.objectStore("pictures");
      const asked = work(pictures);
      const count = pictures.count();
      count.onsuccess = () => {
        let over = count.result - KEPT;
        if (over > 0) pictures.index("at").openKeyCursor().onsuccess = ({ target: { result: at } }) => {
          if (!at || over-- <= 0) return;
          pictures.delete(at.primaryKey);
          at.continue();
        };
      };
      turn.oncomplete = () => (base.close(), done(asked.result ?? null));
      turn.onerror = turn.onabort = () => (base.close(), done(null));
    };
  });
}
